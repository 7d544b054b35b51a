"""Indexes of columns of `job` that most jobs leave empty have only the jobs that set them; one of failed deliveries."""

import sqlalchemy as sa
from alembic import op

from migrations.locks import create_index

revision = "0047"
down_revision = "0046"
branch_labels = None
depends_on = None

#: The new index, the one that it replaces, the columns, and the one that is set.
_INDEXES = (
    ("ix_job_output", "ix_job_output_file", ["output_file_id"], "output_file_id"),
    ("ix_job_errors", "ix_job_error_file", ["error_file_id"], "error_file_id"),
    ("ix_job_scheduled", "ix_job_schedule", ["project_id", "schedule_id", "created_at", "id"], "schedule_id"),
    ("ix_job_idempotency_key", "ix_job_idempotency", ["project_id", "idempotency_key"], "idempotency_key"),
)


def upgrade() -> None:
    for name, _, columns, column in _INDEXES:
        is_set = sa.text(f"{column} IS NOT NULL")
        create_index(name, "job", columns, sqlite_where=is_set, postgresql_where=is_set)
    failed = sa.text("state = 'failed'")
    create_index("ix_delivery_failed", "delivery", ["created_at"], sqlite_where=failed, postgresql_where=failed)
    for _, old, _, _ in _INDEXES:
        op.drop_index(old, "job")
