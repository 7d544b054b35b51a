"""How SQLite reads what a test queries, with the parameters as the product sends them."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event

from jobs.db.engine import Database


@contextmanager
def explained(sqlite: Database) -> Iterator[list[str]]:
    """Yield the steps of the plans of all queries that are made meanwhile."""
    steps: list[str] = []

    def explain(connection, cursor, statement, parameters, *_) -> None:  # type: ignore[no-untyped-def]
        if statement.startswith("SELECT"):
            plan = connection.connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            steps.extend(row[3] for row in plan)

    event.listen(sqlite.engine, "before_cursor_execute", explain)
    try:
        yield steps
    finally:
        event.remove(sqlite.engine, "before_cursor_execute", explain)
