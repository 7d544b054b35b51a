"""Revisions since the last release leave it working: what breaks it, or keeps its writers out, is found."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import op
from alembic.script import ScriptDirectory

from migrations import compatibility
from migrations.compatibility import RELEASED, breaches, find_breaches, render
from migrations.locks import create_index

READ = "the last release may read it"
WRITES = "the last release writes rows without it"
LOCKS = "keeps writers out"


def _column(**facts: Any) -> sa.Column[Any]:
    return sa.Column("colour", sa.String(8), **facts)


def _own_table() -> None:
    op.create_table("shelf", sa.Column("id", sa.Integer, primary_key=True), _column(nullable=False))
    op.create_index("ix_shelf_colour", "shelf", ["colour"])
    op.add_column("shelf", sa.Column("size", sa.Integer, nullable=False))


@pytest.mark.parametrize(
    ("upgrade", "reasons"),
    [
        (lambda: op.alter_column("response", "asked", new_column_name="requested_model"), [READ]),
        (lambda: op.rename_table("response", "answer"), [READ]),
        (lambda: op.drop_column("response", "asked"), [READ]),
        (lambda: op.drop_table("response"), [READ]),
        (lambda: op.execute("ALTER TABLE response\n  DROP COLUMN asked"), [READ]),
        (lambda: op.execute('alter table only "response" drop asked'), [READ]),
        (lambda: op.add_column("job", _column(nullable=False)), [WRITES]),
        (lambda: op.alter_column("job", "queue", nullable=False), [WRITES]),
        (lambda: op.create_index("ix_job_colour", "job", ["colour"]), [LOCKS]),
        (lambda: op.create_index("ix_job_colour", "job", ["colour"], unique=True), [LOCKS]),
        (lambda: op.create_unique_constraint("uq_job_colour", "job", ["colour"]), [LOCKS]),
        (lambda: op.add_column("job", _column()), []),
        (lambda: op.add_column("job", _column(nullable=False, server_default="red")), []),
        (lambda: op.add_column("job", _column(nullable=False, server_default=sa.false())), []),
        (lambda: op.drop_index("ix_job_colour", "job"), []),
        (lambda: op.alter_column("job", "queue", server_default=None, nullable=True), []),
        (lambda: op.execute("ALTER INDEX ix_job_colour RENAME TO ix_job_color"), []),
        (lambda: op.execute("UPDATE job SET queue = 'x' WHERE queue IS NULL"), []),
        (lambda: create_index("ix_job_colour", "job", ["colour"]), []),
        (_own_table, []),
    ],
)
def test_a_revision_that_the_last_release_does_not_bear_is_found(
    upgrade: Callable[[], None], reasons: list[str]
) -> None:
    found = list(find_breaches(render(upgrade), set()))

    assert len(found) == len(reasons)
    assert all(reason in breach for reason, breach in zip(reasons, found, strict=True))


def test_revision_may_drop_columns_unread_by_last_release() -> None:
    def upgrade() -> None:
        op.drop_column("response", "asked")
        op.create_index("ix_job_colour", "job", ["colour"])

    [found] = find_breaches(render(upgrade), set(), contracts=True)

    assert LOCKS in found


def test_the_revisions_of_this_version_leave_the_last_release_working() -> None:
    assert breaches() == []


def test_revisions_of_this_version_alter_a_single_table_in_a_transaction() -> None:
    scripts = ScriptDirectory(str(compatibility.MIGRATIONS)).walk_revisions(RELEASED, "heads")
    statements = [statement for script in reversed(list(scripts)[:-1]) for statement in render(script.module.upgrade)]

    transactions = ";".join(statements).split("COMMIT")

    altered = [set(re.findall(r"ALTER TABLE (\w+)", transaction)) for transaction in transactions]
    assert {"job", "api_key"} <= set().union(*altered)
    assert [tables for tables in altered if len(tables) > 1] == []


def test_each_revision_since_the_last_release_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "versions").mkdir()
    before = None
    for number, upgrade in {
        RELEASED: 'op.drop_column("job", "queue")',
        "1001": 'op.create_table("shelf")',
        "1002": 'op.create_index("ix_shelf_colour", "shelf", ["colour"])',
        "1003": 'op.alter_column("response", "asked", new_column_name="requested_model")',
        "1004": 'op.create_index("ix_response_model", "response", ["model"])',
        "1005": 'op.drop_column("response", "asked")\n\ncontracts = "no version in use reads it"',
    }.items():
        source = f"from alembic import op\nrevision, down_revision = {number!r}, {before!r}\n"
        source += f"def upgrade() -> None:\n    {upgrade}\n"
        (tmp_path / "versions" / f"{number}_change.py").write_text(source)
        before = number
    monkeypatch.setattr(compatibility, "MIGRATIONS", tmp_path)

    renamed, built = breaches()

    assert renamed.startswith(f"1003: {READ}: ALTER TABLE response RENAME asked")
    assert built.startswith("1004: ")
    assert LOCKS in built


def test_an_index_of_a_table_with_rows_is_built_outside_of_the_transaction() -> None:
    statements = render(lambda: create_index("ix_job_colour", "job", ["colour"]))

    built = statements.index("CREATE INDEX CONCURRENTLY ix_job_colour ON job (colour)")
    assert statements.index("COMMIT") < built < statements.index("BEGIN")
    assert "DROP INDEX CONCURRENTLY IF EXISTS ix_job_colour" in statements[:built]
