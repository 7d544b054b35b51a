"""Engines that die again and again: their deaths, what is left alone, and what a worker has loaded."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker", sa.Column("place", sa.String(255), nullable=True))
    op.add_column("worker", sa.Column("holds", sa.JSON(), nullable=True))
    op.create_table(
        "engine_death",
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("place", sa.String(255), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("entry", sa.String(64), nullable=False),
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("starting", sa.Boolean(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("suspects", sa.JSON(), nullable=False),
        sa.Column("lines", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_engine_death"),
    )
    op.create_index("ix_engine_death_place", "engine_death", ["place", "model"])
    op.create_table(
        "quarantine",
        sa.Column("place", sa.String(255), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("entry", sa.String(64), nullable=False),
        sa.Column("deaths", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("suspects", sa.JSON(), nullable=False),
        sa.Column("lines", sa.JSON(), nullable=False),
        sa.Column("trial", sa.String(64), nullable=True),
        sa.Column("tries", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("until", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("place", "model", name="pk_quarantine"),
    )
