"""The caches of vectors and of answers; jobs are found by their output file."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cached",
        sa.Column("key", sa.LargeBinary(32), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=True),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("expires_at", sa.Float(53), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_cached"),
    )
    op.create_index("ix_cached_expires", "cached", ["expires_at", "size"])
    op.create_index("ix_cached_project", "cached", ["project_id", "epoch"])
    owned = sa.text("job_id IS NOT NULL")
    op.create_index("ix_cached_job", "cached", ["job_id"], sqlite_where=owned, postgresql_where=owned)
    op.create_table(
        "cache_epoch",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", name="pk_cache_epoch"),
    )
    op.create_table(
        "cache_use",
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("hits", sa.BigInteger(), nullable=False),
        sa.Column("misses", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", name="pk_cache_use"),
    )
    op.create_index("ix_job_output_file", "job", ["output_file_id"])
