"""Add the tables of monitors of drift and their checks."""

import sqlalchemy as sa
from alembic import op

revision = "0058"
down_revision = "0057"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "drift_monitor",
        *(sa.Column(name, sa.String(64), nullable=False) for name in ("id", "project_id", "baseline_id")),
        *(sa.Column(name, sa.String(255), nullable=False) for name in ("name", "embedding_model")),
        sa.Column("source", sa.JSON(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("window_seconds", "sample")),
        sa.Column("metadata", sa.JSON()),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_drift_monitor"),
        sa.Index("ix_drift_monitor_project_created", "project_id", "created_at", "id"),
        sa.Index("ix_drift_monitor_baseline", "baseline_id"),
    )
    op.create_table(
        "drift_check",
        *(sa.Column(name, sa.String(64), nullable=False) for name in ("id", "monitor_id", "project_id")),
        sa.Column("is_drift", sa.Boolean()),
        sa.Column("features", sa.JSON()),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_drift_check"),
        sa.Index("ix_drift_check_monitor_created", "monitor_id", "created_at", "id"),
    )
