"""The database of this installation, for the few commands that work on it directly."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import inspect
from sqlalchemy.engine import make_url

from cli.effective import effective
from cli.trouble import Trouble
from jobs.db import Database


@contextmanager
def opened(data_dir: Path | None) -> Iterator[Database]:
    """The database, which a release step must have made. Raises Trouble when none is there."""
    config = effective(data_dir=data_dir)
    url = make_url(config.database)
    missing = f"there is no Nightmill database at {url.render_as_string(hide_password=True)}"
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        raise Trouble(f"{missing}; name its folder with --data-dir, or start one with `nightmill up`")
    db = Database(config.database, patience=10)
    try:
        if not inspect(db.engine).has_table("api_key"):
            raise Trouble(f"{missing}; make it with `python -m jobs.bootstrap`")
        yield db
    finally:
        db.close()
