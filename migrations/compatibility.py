"""Check that the last release works on the schema of this version: both run side by side while hosts are replaced.

    expand      in one release: add tables, columns that may be null or have a default, indexes. The old version ignores
                them. The new one writes both what it reads and what the last release reads
    contract    one release later: drop what no version in use reads any more. The revision says why in `contracts`

Each revision since the last release is rendered as SQL for PostgreSQL, and its statements are looked at.
"""

import io
import re
from collections.abc import Callable, Iterator
from typing import Final

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory

from jobs.bootstrap import MIGRATIONS

#: The newest revision of the last release; who makes a release sets it. Before the first release: the baseline.
RELEASED: Final = "0047"

_READ: Final = "the last release may read it"
_WRITTEN: Final = "the last release writes rows without it"
_LOCKED: Final = "it keeps writers out while it is built: use migrations.locks.create_index"
_NAME: Final = r'"?(?:\w+\.)?(\w+)"?'
_CREATED: Final = re.compile(rf"CREATE TABLE (?:IF NOT EXISTS )?{_NAME}", re.IGNORECASE)
_DROPPED: Final = re.compile(rf"DROP TABLE (?:IF EXISTS )?{_NAME}", re.IGNORECASE)
_ALTERED: Final = re.compile(rf"ALTER TABLE (?:IF EXISTS )?(?:ONLY )?{_NAME} (.*)", re.IGNORECASE)
_INDEXED: Final = re.compile(rf"CREATE (?:UNIQUE )?INDEX (?!CONCURRENTLY).*? ON (?:ONLY )?{_NAME}", re.IGNORECASE)
#: What an ALTER TABLE does, and the reason against it.
_CHANGES: Final = {
    re.compile(pattern, re.IGNORECASE): reason
    for pattern, reason in (
        (r"\bDROP (?!CONSTRAINT|DEFAULT|NOT NULL|IDENTITY|EXPRESSION)|\bRENAME (?!CONSTRAINT)", _READ),
        (r"ADD COLUMN (?=.* NOT NULL)(?!.* DEFAULT )|ALTER COLUMN .* SET NOT NULL", _WRITTEN),
        (r"ADD CONSTRAINT .*(?:UNIQUE|PRIMARY KEY) *\(", _LOCKED),
    )
}


def breaches() -> list[str]:
    """Return what the revisions since the last release do that breaks it, or keeps it waiting."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    newer = [script for script in scripts.walk_revisions(RELEASED, "heads") if script.revision != RELEASED]
    created = set[str]()
    found = list[str]()
    for script in reversed(newer):
        why = find_breaches(render(script.module.upgrade), created, contracts=hasattr(script.module, "contracts"))
        found += [f"{script.revision}: {breach}" for breach in why]
    return found


def render(upgrade: Callable[[], None]) -> list[str]:
    """Return the statements of a revision for PostgreSQL, each on one line."""
    written = io.StringIO()
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": written})
    with Operations.context(context):
        upgrade()
    return [" ".join(statement.split()) for statement in written.getvalue().split(";")]


def find_breaches(statements: list[str], created: set[str], *, contracts: bool = False) -> Iterator[str]:
    """Yield the statements that the last release does not bear, each with the reason.

    Tables that the statements create are added to `created`: the last release knows nothing of them. `contracts` says
    that the last release does not read what is dropped.
    """
    for statement in statements:
        created.update(_CREATED.findall(statement))
        for table, reason in _reasons(statement):
            if table not in created and not (contracts and reason is _READ):
                yield f"{reason}: {statement}"


def _reasons(statement: str) -> Iterator[tuple[str, str]]:
    """Yield the table that a statement is about, with each reason against it."""
    if dropped := _DROPPED.match(statement):
        yield dropped[1], _READ
    if indexed := _INDEXED.match(statement):
        yield indexed[1], _LOCKED
    if altered := _ALTERED.match(statement):
        yield from ((altered[1], reason) for change, reason in _CHANGES.items() if change.search(altered[2]))
