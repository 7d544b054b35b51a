"""`python -m migrations.check` fails unless a new database at the newest revision holds what the models say.

It fails too where the last release would not work on that schema, see `migrations.compatibility`.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import NullPool, create_engine

from jobs.bootstrap import migrate
from jobs.tables import Base
from migrations.compatibility import breaches


def drift(url: str) -> list[Any]:
    """Return the changes that a migrated database would need to match the models."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'check.db'}"
        migrate(url)
        differences = drift(url)
    found = [f"models and migrations differ: {change}" for change in differences]
    found += [f"a rolling upgrade from the last release breaks: {breach}" for breach in breaches()]
    for problem in found:
        sys.stderr.write(f"{problem}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
