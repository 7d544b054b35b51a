"""Migrate PostgreSQL while others use it: bound every wait, lock one table at a time, build indexes beside writers."""

import threading
from typing import Any, Final

from alembic import op
from sqlalchemy import Column, Connection, text

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


def commit() -> None:
    """Commit what the upgrade has done, on PostgreSQL: it locks no table while it waits for another.

    An upgrade that is killed later begins with this revision again, so what is committed must bear to be repeated.
    """
    context = op.get_context()
    if context.dialect.name == "postgresql":
        with context.autocommit_block():
            pass
        op.execute(_LIMITS)


def add_columns(table: str, *columns: Column[Any]) -> None:
    """Add columns to a table that others use, in a transaction that locks no other table of theirs."""
    commit()
    for column in columns:
        op.add_column(table, column, if_not_exists=op.get_context().dialect.name == "postgresql")


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
