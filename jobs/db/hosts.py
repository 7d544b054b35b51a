"""SQLite is for one host: its locks mean nothing on another. The name of the first host is stored in the database.

Every process checks it at its start. One that was pointed at a shared folder refuses instead of corrupting it.
"""

import socket

from jobs.db.engine import Database
from jobs.errors import NightmillError
from jobs.fleet.tables import Meta

_HOST = "sqlite_host"


class WrongHost(NightmillError):
    """The SQLite database was created by another host."""

    text = "This SQLite database belongs to another host; several hosts need PostgreSQL (NIGHTMILL_DATABASE_URL)."


def claim_host(db: Database) -> None:
    """Store the name of this host in a new SQLite database. Raises WrongHost when it has another one."""
    if not db.sqlite:
        return
    with db.read() as session:
        meta = session.get(Meta, _HOST)
    if meta is None:
        with db.write() as session:
            meta = session.get(Meta, _HOST) or session.merge(Meta(key=_HOST, value=socket.gethostname()))
    if meta.value != socket.gethostname():
        raise WrongHost
