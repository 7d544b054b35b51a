"""Stored responses are selected by model and metadata."""

import sqlalchemy as sa
from alembic import op

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("response", sa.Column("asked", sa.String(255), nullable=True))
    op.add_column("response", sa.Column("model", sa.String(255), nullable=True))
    op.add_column("response", sa.Column("metadata", sa.JSON(), nullable=True))
    op.create_index("ix_response_project_created", "response", ["project_id", "created_at", "id"])
