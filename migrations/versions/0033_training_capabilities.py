"""What a worker can train, as it says itself."""

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker", sa.Column("training", sa.JSON(), nullable=True))
