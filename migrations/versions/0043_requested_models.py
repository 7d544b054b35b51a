"""The column of the model that a client named is called `requested_model`. The rows stay as they are."""

from alembic import op

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("chat_completion", "response"):
        op.alter_column(table, "asked", new_column_name="requested_model")
