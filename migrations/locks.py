"""Migrate PostgreSQL while others use it: wait for one's turn, bound every wait, build indexes beside writers."""

import threading
from typing import Any, Final

from alembic import op
from sqlalchemy import Connection, text

_LOCK: Final = 0x6E6D_0000  # any number that is ours; the dispatcher's is the next one
_TURN_SECONDS: Final = 0.2  # between looks at whether another process has ended its upgrade
_LOCK_WAIT: Final = "10s"  # for a table that others use: give up rather than make the whole system wait behind us
_STATEMENT: Final = "15min"  # a change of a big table takes its time


def take_turn(connection: Connection) -> None:
    """Wait until no other process upgrades this database. The turn ends with the connection.

    A transaction that waits for the lock would hold up CREATE INDEX CONCURRENTLY, which waits for all transactions.
    """
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": _LOCK}):
        connection.rollback()
        threading.Event().wait(_TURN_SECONDS)
    connection.execute(text(_limits(_LOCK_WAIT, _STATEMENT)))
    connection.commit()


def create_index(name: str, table: str, columns: list[Any], **options: Any) -> None:
    """Build an index of a table that has rows; PostgreSQL builds it without keeping writers out.

    What the upgrade has done before is committed first. An upgrade that is killed meanwhile leaves an index that is not
    used; the next upgrade begins with this revision again, and drops that index first.
    """
    context = op.get_context()
    if context.dialect.name != "postgresql":
        op.create_index(name, table, columns, **options)
        return
    with context.autocommit_block():
        op.execute(_limits("0", "0"))
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, columns, postgresql_concurrently=True, **options)
        op.execute(_limits(_LOCK_WAIT, _STATEMENT))


def _limits(lock: str, statement: str) -> str:
    return f"SELECT set_config('lock_timeout', '{lock}', false), set_config('statement_timeout', '{statement}', false)"
