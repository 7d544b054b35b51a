"""What became of the lines of a shard that has ended, so that how far a job is need not be asked of its segments.

Shards that have ended before, or by a worker from before, say nothing: theirs are asked as they were.
"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("shard", sa.Column("outcomes", sa.JSON(), nullable=True))
