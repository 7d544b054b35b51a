"""Add the requests for the shadows of aliases by minute, and since when an alias has a shadow."""

import sqlalchemy as sa
from alembic import op

from migrations.locks import add_columns

revision = "0060"
down_revision = "0059"
branch_labels = None
depends_on = None


def upgrade() -> None:
    add_columns("alias", sa.Column("shadow_since", sa.Float(53)))
    op.create_index("ix_alias_shadow_since", "alias", ["shadow_since"])
    counts = ("requests", "sent", "dropped", "failed", "compared", "equal")
    op.create_table(
        "shadow_minute",
        sa.Column("project_id", sa.String(64), nullable=False),
        *(sa.Column(name, sa.String(255), nullable=False) for name in ("alias", "model")),
        sa.Column("minute", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in counts),
        sa.Column("length_ratio", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "alias", "model", "minute", name="pk_shadow_minute"),
        sa.Index("ix_shadow_minute_minute", "minute"),
    )
