"""SQLite is one host: its locks mean nothing on another. The first one's name is kept in the database.

Every process asks at its start, so that one which was pointed at a shared folder refuses instead of corrupting it.
"""

import socket

from jobs.db.engine import Database
from jobs.errors import NightmillError
from jobs.fleet.tables import Meta

_HOST = "sqlite_host"


class WrongHost(NightmillError):
    """This SQLite database belongs to another host; several hosts need PostgreSQL (NIGHTMILL_DATABASE_URL)."""


def claim_host(db: Database) -> None:
    """SQLite is one host: the first one's name is kept, another refuses to start."""
    if not db.sqlite:
        return
    with db.read() as session:
        meta = session.get(Meta, _HOST)
    if meta is None:
        with db.write() as session:
            meta = session.get(Meta, _HOST) or session.merge(Meta(key=_HOST, value=socket.gethostname()))
    if meta.value != socket.gethostname():
        raise WrongHost
