"""A project may have the pictures and files that its requests name by URL fetched. None may until it is allowed to."""

import sqlalchemy as sa
from alembic import op

revision = "0045"
down_revision = "0044"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column = sa.Column("allow_media_urls", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("project", column)
