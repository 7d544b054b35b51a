"""Lists of the jobs in one state, and counts by kind and state, without a look at every job there ever was."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_job_project_state", "job", ["project_id", "state", "created_at", "id"])
    op.create_index("ix_job_kind_state", "job", ["kind", "state"])
