"""Columns that hold OpenAI's `metadata` get that name; they were `labels`."""

from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("job", "chat_completion", "conversation", "vector_store"):
        op.execute(f"ALTER TABLE {table} RENAME COLUMN labels TO metadata")
