"""What became of the lines, counted; lost leases of a job and its shards; how often its results could not be assembled.

`job.stalls` counted a job's own lost claims: it goes on as `losses`, which counts those on its shards too. No table is
written anew, however large it is.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE job RENAME COLUMN stalls TO losses")  # both databases know it; Alembic would copy on SQLite
    op.add_column("job", sa.Column("stumbles", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.add_column("segment", sa.Column("outcomes", sa.JSON(), nullable=True))
    op.create_table(
        "outcome",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_outcome"),
    )
