"""Bytes that projects store: sizes that only the storage knew, a row of usage per project, indexes to sum over.

Sizes of objects from before are NULL until maintenance has asked the storage for them. An upload counts completions
that were refused for their MD5.
"""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_KEPT = ("response", "chat_completion", "conversation")


def upgrade() -> None:
    op.add_column("upload", sa.Column("md5_mismatches", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("ix_upload_project_status", "upload", ["project_id", "status"])
    op.create_index("ix_file_project_bytes", "file", ["project_id", "bytes"])
    op.create_index("ix_vector_store_file_project_bytes", "vector_store_file", ["project_id", "usage_bytes"])
    for table in _KEPT:
        op.add_column(table, sa.Column("bytes", sa.BigInteger(), nullable=True))
        op.create_index(f"ix_{table}_project_bytes", table, ["project_id", "bytes"])
    op.create_table(
        "storage_usage",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("added", sa.BigInteger(), nullable=False),
        sa.Column("counted", sa.BigInteger(), nullable=False),
        sa.Column("counted_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("project_id", name="pk_storage_usage"),
    )
