"""Let schedules submit jobs of every kind, and keep the files that they name."""

import sqlalchemy as sa
from alembic import op

from migrations.locks import add_columns

revision = "0059"
down_revision = "0058"
branch_labels = None
depends_on = None


def upgrade() -> None:
    kind = sa.Column("kind", sa.String(32), nullable=False, server_default=sa.text("'batch'"))
    add_columns("schedule", kind, sa.Column("job", sa.JSON()))
    with op.batch_alter_table("schedule") as table:
        table.alter_column("input_file_id", existing_type=sa.String(64), nullable=True)
    op.create_table(
        "schedule_file",
        sa.Column("schedule_id", sa.String(64), nullable=False),
        sa.Column("file_id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("schedule_id", "file_id", name="pk_schedule_file"),
        sa.Index("ix_schedule_file_file", "file_id"),
    )
