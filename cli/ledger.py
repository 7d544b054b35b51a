"""The database of this installation, for the few commands that work on it directly."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from cli.effective import effective
from cli.trouble import Trouble
from jobs.db.engine import Database

#: What is shown of a URL's query: a password may stand there too, and SQLAlchemy hides only the one before the host.
_SHOWN = frozenset({"host", "port"})


def without_secrets(url: URL) -> str:
    """To be shown, in this form only."""
    return url.difference_update_query(url.query.keys() - _SHOWN).render_as_string(hide_password=True)


@contextmanager
def opened(data_dir: Path | None) -> Iterator[Database]:
    """The database, which a release step must have made. Raises Trouble when none is there, or none that answers."""
    config = effective(data_dir=data_dir)
    url = make_url(config.database)
    shown = without_secrets(url)
    missing = f"there is no Nightmill database at {shown}"
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        raise Trouble(f"{missing}; name its folder with --data-dir, or start one with `nightmill up`")
    db = Database(config.database, patience=10)
    try:
        if not _is_made(db, shown):
            raise Trouble(f"{missing}; make it with `python -m jobs.bootstrap`")
        yield db
    finally:
        db.close()


def _is_made(db: Database, shown: str) -> bool:
    try:
        return inspect(db.engine).has_table("api_key")
    except DBAPIError as error:
        why, _, _ = str(error.orig).partition("\n")
        raise Trouble(f"the database at {shown} cannot be asked: {why}") from error
