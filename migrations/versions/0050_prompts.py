"""Add the tables of prompts and of their versions."""

import sqlalchemy as sa
from alembic import op

revision = "0050"
down_revision = "0049"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "prompt",
        *(sa.Column(name, sa.String(64), nullable=False) for name in ("project_id", "id")),
        sa.Column("name", sa.String(255)),
        *(sa.Column(name, sa.JSON(), nullable=False) for name in ("metadata", "labels")),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("default_version", "latest_version")),
        sa.Column("imported_from", sa.String(64)),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("archived_at", sa.Float(53)),
        sa.PrimaryKeyConstraint("project_id", "id", name="pk_prompt"),
        sa.Index("ix_prompt_project_created", "project_id", "created_at", "id"),
    )
    op.create_table(
        "prompt_version",
        *(sa.Column(name, sa.String(64), nullable=False) for name in ("project_id", "prompt_id", "hash")),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("version", "bytes")),
        sa.Column("created_by", sa.String(64)),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "prompt_id", "version", name="pk_prompt_version"),
        sa.Index("ix_prompt_version_project_bytes", "project_id", "bytes"),
    )
