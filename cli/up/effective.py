"""The settings in force, from the environment and the command line, and the database that they name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from cli.errors import CliError
from cli.up import deployments
from cli.up.folder import DataFolder
from cli.up.readiness import is_free, take_free
from jobs.db.engine import Database
from jobs.settings import InvalidSettings, Settings, read


def effective(**given: Any) -> Settings:
    """Return the settings of the deployment that a command addresses. None stands for the environment's value.

    A data folder that is not named is looked up among the deployments that this user has started.

    Raises:
        CliError: a setting is invalid; the message names its variable.
    """
    config = _read_settings(**given)
    if "data_dir" in config.model_fields_set:
        return config.model_copy(update={"data_dir": config.data_dir.absolute()})
    return config.model_copy(update={"data_dir": deployments.find(config.data_dir)})


def _read_settings(**given: Any) -> Settings:
    """Return the settings of command line and environment, with defaults. Raises CliError as `effective` does."""
    try:
        config = read(**{name: value for name, value in given.items() if value is not None})
    except InvalidSettings as error:
        raise CliError(str(error)) from error
    if config.database_url:
        _check_database(config.database_url)
    return config


def running(data_dir: Path | None) -> Settings:
    """Return the settings with the models file and the aliases of the running `nightmill up`."""
    config = effective(data_dir=data_dir)
    run = DataFolder(config.data_dir).live_run()
    named = config.models_file or run.get("models_file") or ""
    aliases = config.openai_aliases or bool(run.get("openai_aliases"))
    return config.model_copy(update={"models_file": named, "openai_aliases": aliases})


def _check_database(url: str) -> None:
    """Raise CliError for an invalid database URL. The message omits the URL, which may contain a password."""
    try:
        make_url(url).get_dialect().import_dbapi()
    except (ArgumentError, ValueError, ImportError):
        reason = (
            "names no database that there is a driver for; one looks like postgresql+psycopg://user:password@host/name"
        )
        raise CliError(f"NIGHTMILL_DATABASE_URL {reason}") from None


def for_up(
    data_dir: Path | None,
    host: str | None,
    port: int | None,
    urls: list[str] | None,
    no_vllm: bool,
    models: Path | None,
    *,
    openai_aliases: bool = False,
) -> Settings:
    """Return the settings for `up`: with chosen ports and absolute paths."""
    config = _read_settings(
        data_dir=data_dir,
        host=host,
        port=port,
        engine_urls=urls or None,
        vllm_enabled=False if no_vllm else None,
        models_file=str(models) if models else None,
        openai_aliases=True if openai_aliases else None,
    )
    chosen = config.port or take_free(config.host)
    named = str(Path(config.models_file).expanduser().absolute()) if config.models_file else ""
    flower = config.flower_port or _port_after(chosen, config.flower_host)
    paths = {"data_dir": config.data_dir.absolute(), "models_file": named}
    return config.model_copy(update={**paths, "port": chosen, "flower_port": flower})


def _port_after(port: int, host: str) -> int:
    """Return the next port, for Flower, or any free port."""
    following = port + 1
    return following if following < 1 << 16 and is_free(host, following) else take_free(host)


#: The parameters of a URL's query that are shown. SQLAlchemy hides only the password before the host.
_SHOWN = frozenset({"host", "port"})


def without_secrets(url: URL) -> str:
    """Return a database URL for display, without its secrets."""
    return url.difference_update_query(url.query.keys() - _SHOWN).render_as_string(hide_password=True)


@contextmanager
def opened(data_dir: Path | None) -> Iterator[Database]:
    """Yield the database. Raises CliError when it does not answer, or the release step has not created it."""
    config = effective(data_dir=data_dir)
    url = make_url(config.database)
    shown = without_secrets(url)
    missing = f"there is no Nightmill database at {shown}"
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        raise CliError(f"{missing}; name its folder with --data-dir, or start one with `nightmill up`")
    db = Database(config.database, patience=10)
    try:
        if not _is_made(db, shown):
            raise CliError(f"{missing}; make it with `python -m jobs.bootstrap`")
        yield db
    finally:
        db.close()


def _is_made(db: Database, shown: str) -> bool:
    try:
        return inspect(db.engine).has_table("api_key")
    except DBAPIError as error:
        why, _, _ = str(error.orig).partition("\n")
        raise CliError(f"the database at {shown} cannot be asked: {why}") from error
