"""What workers are at that no claim says."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker", sa.Column("unclaimed", sa.JSON(), nullable=True))
