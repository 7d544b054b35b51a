"""A checkpoint knows what is left of it without its optimiser; of those from before all bytes count."""

import sqlalchemy as sa
from alembic import op

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("finetune_checkpoint", sa.Column("model_bytes", sa.BigInteger(), nullable=True))
