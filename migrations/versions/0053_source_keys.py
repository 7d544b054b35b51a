"""Add to sources of vector stores the key for which they are synced. Those that exist go on without one."""

import sqlalchemy as sa

from migrations.locks import add_columns

revision = "0053"
down_revision = "0052"
branch_labels = None
depends_on = None


def upgrade() -> None:
    add_columns("source", sa.Column("key_id", sa.String(16)))
