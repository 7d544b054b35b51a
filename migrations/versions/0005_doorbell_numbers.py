"""The number of a doorbell is never used again.

SQLite gives the number of the last row, once that is deleted, to the next one. A dispatcher that notes which doorbells
it has rung would then note it of one that it never rang. PostgreSQL's sequences do not come back.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        with op.batch_alter_table("outbox", recreate="always", table_kwargs={"sqlite_autoincrement": True}):
            pass
