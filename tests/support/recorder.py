"""Notes that a test leaves in a database, by one process or many."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.fleet.tables import Meta
from jobs.timings import Timings


def lock_file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///") + ".lock")


@contextmanager
def opened(
    url: str, patience: float = 0.3, *, urgent: bool = False, timings: Timings = Timings()
) -> Iterator[Database]:
    database = Database(url, patience=patience, urgent=urgent, timings=timings)
    yield database
    database.close()


def note(db: Database, key: str, value: str = "1") -> None:
    with db.write() as session:
        session.merge(Meta(key=key, value=value))


def notes(db: Database) -> dict[str, str]:
    with db.read() as session:
        return {meta.key: meta.value for meta in session.scalars(select(Meta))}


def add_one(session: Session) -> None:
    meta = session.get(Meta, "n", with_for_update=True, populate_existing=True)
    if meta is None:
        session.add(Meta(key="n", value="1"))
    else:
        meta.value = str(int(meta.value) + 1)


def write_many(url: str, count: int) -> None:
    with opened(url, patience=30) as db:
        for _ in range(count):
            with db.write() as session:
                add_one(session)
            db.breathe()
