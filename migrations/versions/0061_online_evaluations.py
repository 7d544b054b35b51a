"""Add the tables of online evaluations and their rounds."""

import sqlalchemy as sa
from alembic import op

revision = "0061"
down_revision = "0060"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "online_evaluation",
        *(sa.Column(name, sa.String(64), nullable=False) for name in ("id", "project_id", "eval_id", "timezone")),
        sa.Column("key_id", sa.String(16)),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("cron", sa.String(128), nullable=False),
        sa.Column("source", sa.JSON(), nullable=False),
        *(sa.Column(name, sa.Float(53), nullable=False) for name in ("share", "marked_at", "next_at", "created_at")),
        sa.Column("max_answers_per_day", sa.BigInteger(), nullable=False),
        sa.Column("is_alerting", sa.Boolean(), nullable=False),
        *(sa.Column(name, sa.Float(53)) for name in ("paused_at", "value")),
        sa.Column("last_error", sa.Text()),
        *(sa.Column(name, sa.JSON()) for name in ("threshold", "metadata")),
        sa.PrimaryKeyConstraint("id", name="pk_online_evaluation"),
        sa.Index("ix_online_evaluation_next", "next_at"),
        sa.Index("ix_online_evaluation_project_created", "project_id", "created_at", "id"),
    )
    op.create_table(
        "online_round",
        *(
            sa.Column(name, sa.String(64), nullable=False)
            for name in ("id", "online_evaluation_id", "project_id", "eval_id")
        ),
        *(sa.Column(name, sa.Float(53), nullable=False) for name in ("since", "until", "created_at")),
        sa.Column("answers", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.BigInteger()) for name in ("passed", "failed", "errored")),
        sa.Column("criteria", sa.JSON()),
        sa.Column("error", sa.Text()),
        sa.Column("ended_at", sa.Float(53)),
        sa.PrimaryKeyConstraint("id", name="pk_online_round"),
        sa.Index("ix_online_round_evaluation_created", "online_evaluation_id", "created_at", "id"),
        sa.Index("ix_online_round_ended", "ended_at"),
    )
