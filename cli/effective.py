"""The settings in force: the environment's, with what the command line says instead."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from cli.folder import DataFolder
from cli.ports import is_free, take_free
from cli.trouble import Trouble
from jobs.platform import processes
from jobs.settings import Settings


def effective(**given: Any) -> Settings:
    """Settings; what is given as None is as the environment says. Raises Trouble that names the wrong variables."""
    try:
        config = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise Trouble(
            "; ".join(f"{_name(one['loc'])}: {one['msg'].removeprefix('Value error, ')}" for one in error.errors())
        ) from error
    except SettingsError as error:  # a setting out of a file
        raise Trouble(str(error)) from error
    if config.database_url:
        _check_database(config.database_url)
    return config.model_copy(update={"data_dir": config.data_dir.absolute()})


def running(data_dir: Path | None) -> Settings:
    """`effective`, with the models file that `nightmill up` runs with here, where the environment names none."""
    config = effective(data_dir=data_dir)
    run = DataFolder(config.data_dir).read_run()
    named = config.models_file or (run.get("models_file") if run.get("boot_id") == processes.boot_id() else "") or ""
    return config.model_copy(update={"models_file": named})


def _check_database(url: str) -> None:
    """Raises Trouble for a URL that SQLAlchemy makes nothing of. It shows none of it: it may hold a password."""
    try:
        make_url(url).get_dialect().import_dbapi()
    except (ArgumentError, ValueError, ImportError):
        told = (
            "names no database that there is a driver for; one looks like postgresql+psycopg://user:password@host/name"
        )
        raise Trouble(f"NIGHTMILL_DATABASE_URL {told}") from None


def for_up(
    data_dir: Path | None,
    host: str | None,
    port: int | None,
    urls: list[str] | None,
    no_vllm: bool,
    models: Path | None,
) -> Settings:
    """What `up` runs with: ports are chosen, files are named by their whole path."""
    config = effective(
        data_dir=data_dir,
        host=host,
        port=port,
        engine_urls=urls or None,
        vllm_enabled=False if no_vllm else None,
        models_file=str(models) if models else None,
    )
    chosen = config.port or take_free(config.host)
    named = str(Path(config.models_file).expanduser().absolute()) if config.models_file else ""
    flower = config.flower_port or _beside(chosen, config.flower_host)
    return config.model_copy(update={"port": chosen, "flower_port": flower, "models_file": named})


def _beside(port: int, host: str) -> int:
    """The next port for Flower, or any free one."""
    following = port + 1
    return following if following < 1 << 16 and is_free(host, following) else take_free(host)


def _name(location: tuple[int | str, ...]) -> str:
    return f"NIGHTMILL_{str(location[0]).upper()}" if location else "settings"
