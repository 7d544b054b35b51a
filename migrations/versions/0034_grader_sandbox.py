"""The parts that the sandbox of python graders lacks in a worker."""

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker", sa.Column("sandbox_lacks", sa.JSON, nullable=True))
