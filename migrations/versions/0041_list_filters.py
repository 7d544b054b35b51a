"""Jobs are found by their model, their kind, their schedule and the file of their errors; files by their purpose."""

from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_job_project_kind", "job", ["project_id", "kind", "created_at", "id"])
    op.create_index("ix_job_project_model", "job", ["project_id", "model", "created_at", "id"])
    op.create_index("ix_job_error_file", "job", ["error_file_id"])
    op.drop_index("ix_job_schedule", "job")
    op.create_index("ix_job_schedule", "job", ["project_id", "schedule_id", "created_at", "id"])
    op.create_index("ix_file_project_purpose", "file", ["project_id", "purpose", "created_at", "id"])
