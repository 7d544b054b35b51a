"""Looks for bytes that nobody points to, each at once."""

from jobs.db.engine import Database
from jobs.platform.storage import Storage
from jobs.settings import Settings
from workers.dispatcher.orphans import Orphans


def look(orphans: Orphans) -> None:
    for _ in orphans.look():
        continue


def look_twice(config: Settings, db: Database, storage: Storage) -> None:
    """As two looks an hour apart: what neither finds a row for goes."""
    orphans = Orphans(config, db, storage)
    look(orphans)
    look(orphans)
