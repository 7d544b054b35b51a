"""Recurring batches, and jobs that may not begin before a time."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("not_before", sa.Float(53), nullable=True))
    op.add_column("job", sa.Column("schedule_id", sa.String(64), nullable=True))
    op.create_table(
        "schedule",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("cron", sa.String(128), nullable=False),
        sa.Column("timezone", sa.String(64), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("input_file_id", sa.String(64), nullable=False),
        sa.Column("next_at", sa.Float(53), nullable=False),
        sa.Column("last_at", sa.Float(53), nullable=True),
        sa.Column("last_job_id", sa.String(64), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("paused_at", sa.Float(53), nullable=True),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_schedule"),
    )
    op.create_index("ix_schedule_next", "schedule", ["next_at"])
    op.create_index("ix_schedule_project", "schedule", ["project_id", "created_at", "id"])
    op.create_index("ix_schedule_input_file", "schedule", ["input_file_id"])
    op.create_index("ix_job_schedule", "job", ["schedule_id"])
