"""Add the weighted targets of aliases, and the history of their moves, which begins with the aliases of today."""

import sqlalchemy as sa
from alembic import op

from jobs.ids import new_id
from migrations.locks import add_columns

revision = "0056"
down_revision = "0055"
branch_labels = None
depends_on = None

_ROWS = 500  # that are inserted by one statement
_COLUMNS = ("project_id", "name", "model", "created_at", "created_by")


def upgrade() -> None:
    columns = (("routing", sa.JSON()), ("watched_since", sa.Float(53)), ("rollback_id", sa.String(64)))
    add_columns("alias", *(sa.Column(name, kind) for name, kind in columns))
    op.create_index("ix_alias_watched_since", "alias", ["watched_since"])
    op.create_index("ix_alias_rollback_id", "alias", ["rollback_id"])
    moves = op.create_table(
        "alias_move",
        *(sa.Column(name, sa.String(64), nullable=False) for name in ("id", "project_id")),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("reason", sa.String(512)),
        *(sa.Column(name, sa.JSON(none_as_null=True)) for name in ("gate", "routing")),
        sa.PrimaryKeyConstraint("id", name="pk_alias_move"),
        sa.UniqueConstraint("project_id", "number", name="uq_alias_move_project_id_number"),
        sa.Index("ix_alias_move_name", "project_id", "name", "number"),
    )
    if not op.get_context().as_sql:
        _record_aliases(moves)


def _record_aliases(moves: sa.Table) -> None:
    """Add the first move of each alias, numbered within its project in the order of their creation."""
    alias = sa.table("alias", *(sa.column(name) for name in _COLUMNS))
    connection = op.get_bind()
    rows = connection.execute(sa.select(alias).order_by(alias.c.project_id, alias.c.created_at, alias.c.name)).all()
    numbers: dict[str, int] = {}
    first = []
    for row in rows:
        numbers[row.project_id] = numbers.get(row.project_id, 0) + 1
        first.append(
            {
                "id": new_id("amove_"),
                "project_id": row.project_id,
                "name": row.name,
                "number": numbers[row.project_id],
                "at": row.created_at,
                "action": "create",
                "actor": row.created_by,
                "routing": {"targets": [{"model": row.model, "weight": 100}]},
            }
        )
    for start in range(0, len(first), _ROWS):
        connection.execute(sa.insert(moves), first[start : start + _ROWS])
