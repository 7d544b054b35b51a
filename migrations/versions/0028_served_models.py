"""The model that a worker must have for a job whose requests ask for a tuned model: its base."""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("serves_as", sa.String(255), nullable=True))
