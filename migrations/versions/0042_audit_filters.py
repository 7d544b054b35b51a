"""Rows of the audit log are found by their time, their actor and their action."""

from alembic import op

revision = "0042"
down_revision = "0041"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_audit_project", "audit")
    op.create_index("ix_audit_project", "audit", ["project_id", "at", "id"])
    op.create_index("ix_audit_actor", "audit", ["project_id", "actor", "at", "id"])
    op.create_index("ix_audit_action", "audit", ["project_id", "action", "at", "id"])
