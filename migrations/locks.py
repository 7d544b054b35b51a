"""Migrate PostgreSQL while others use it: wait for one's turn, bound every wait, build indexes beside writers."""

import threading
from typing import Any, Final

from alembic import op
from sqlalchemy import Connection, text

_LOCK: Final = 0x6E6D_0000  # any number that is ours; the dispatcher's is the next one
_TURN_SECONDS: Final = 0.2  # between looks at whether another process has ended its upgrade
#: For a table that others use: give up rather than make the whole system wait. A change of a big table takes its time.
_LIMITS: Final = "SELECT set_config('lock_timeout', '10s', true), set_config('statement_timeout', '15min', true)"


def take_turn(connection: Connection) -> None:
    """Wait until no other process upgrades this database. The turn lasts as long as the connection's transaction.

    So it also works through a pooler. The statement has no parameters: one with parameters would keep its snapshot as
    long as the transaction lasts, and CREATE INDEX CONCURRENTLY would wait for that.
    """
    while not connection.scalar(text(f"SELECT pg_try_advisory_xact_lock({_LOCK})")):
        connection.rollback()
        threading.Event().wait(_TURN_SECONDS)


def limit(connection: Connection) -> None:
    """Bound the waits and the statements of a transaction."""
    connection.execute(text(_LIMITS))


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
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, columns, postgresql_concurrently=True, **options)
    op.execute(_LIMITS)
