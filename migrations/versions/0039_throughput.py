"""How many lines each segment holds, and its place in time; of those from before no lines count."""

import sqlalchemy as sa
from alembic import op

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("done", "failed"):
        op.add_column("segment", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    op.create_index("ix_segment_created", "segment", ["created_at"])
