"""Add the table of feedback on answers."""

import sqlalchemy as sa
from alembic import op

revision = "0054"
down_revision = "0053"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "feedback",
        *(sa.Column(name, sa.String(64), nullable=False) for name in ("id", "project_id", "digest")),
        sa.Column("target_type", sa.String(32), nullable=False),
        sa.Column("target_id", sa.String(64), nullable=False),
        sa.Column("item_id", sa.String(512)),
        *(sa.Column(name, sa.String(255)) for name in ("model", "requested_model")),
        sa.Column("score", sa.Float(53), nullable=False),
        sa.Column("user", sa.String(255)),
        *(sa.Column(name, sa.Float(53), nullable=False) for name in ("created_at", "updated_at")),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("comment", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_feedback"),
        sa.UniqueConstraint("digest", name="uq_feedback_digest"),
        sa.Index("ix_feedback_project_created", "project_id", "created_at", "id"),
        sa.Index("ix_feedback_project_target", "project_id", "target_id"),
        sa.Index("ix_feedback_project_model", "project_id", "model", "requested_model", "created_at", "score"),
    )
