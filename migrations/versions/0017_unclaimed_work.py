"""What workers are at that no claim says."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker", sa.Column("unclaimed", sa.JSON(), nullable=True))
