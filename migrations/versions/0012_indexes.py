"""Several indexes of a vector store: rows of the same table, of which one is in use."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("vector_store", sa.Column("parent_id", sa.String(64), nullable=True))
    op.add_column("vector_store", sa.Column("index_id", sa.String(64), nullable=True))
    op.add_column("vector_store", sa.Column("replaced_at", sa.Float(53), nullable=True))
    op.add_column("vector_store", sa.Column("job_id", sa.String(64), nullable=True))
    op.create_index("ix_vector_store_parent_id", "vector_store", ["parent_id"])
