"""Keys of the operator, and the audit log of a project; every key from before is a project's."""

import sqlalchemy as sa
from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_key", sa.Column("operator", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_index("ix_audit_project", "audit", ["project_id", "id"])
