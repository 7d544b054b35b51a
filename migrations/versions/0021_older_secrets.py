"""Signing secrets of endpoints from before the last one, while their time is not over."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("webhook_endpoint", sa.Column("older_secrets", sa.JSON(), nullable=True))
