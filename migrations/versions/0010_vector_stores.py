"""Vector stores and their files; shards that are run in another queue than their job's."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("shard", sa.Column("queue", sa.String(64), nullable=True))
    op.create_table(
        "vector_store",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("labels", sa.JSON(), nullable=True),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("dimensions", sa.BigInteger(), nullable=False),
        sa.Column("shortened", sa.Boolean(), nullable=False),
        sa.Column("chunking", sa.JSON(), nullable=False),
        sa.Column("expires_days", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("active_at", sa.Float(53), nullable=False),
        sa.Column("expires_at", sa.Float(53), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_vector_store"),
    )
    op.create_index("ix_vector_store_project_created", "vector_store", ["project_id", "created_at", "id"])
    op.create_index("ix_vector_store_expires", "vector_store", ["expires_at"])
    _files()
    op.create_table(
        "vector_removal",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("store_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("dimensions", sa.BigInteger(), nullable=False),
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("document", sa.String(96), nullable=True),
        sa.Column("file_id", sa.String(64), nullable=True),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("due_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_vector_removal"),
    )
    op.create_index("ix_vector_removal_store_id", "vector_removal", ["store_id"])


def _files() -> None:
    op.create_table(
        "vector_store_file",
        sa.Column("store_id", sa.String(64), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=True),
        sa.Column("chunking", sa.JSON(), nullable=False),
        sa.Column("error_code", sa.String(64), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("document", sa.String(96), nullable=True),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("usage_bytes", sa.BigInteger(), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("store_id", "id", name="pk_vector_store_file"),
    )
    op.create_index("ix_vector_store_file_created", "vector_store_file", ["store_id", "created_at", "id"])
    op.create_index("ix_vector_store_file_status", "vector_store_file", ["store_id", "status"])
    op.create_index("ix_vector_store_file_document", "vector_store_file", ["store_id", "document"])
    op.create_index("ix_vector_store_file_job", "vector_store_file", ["job_id", "line"])
    op.create_index("ix_vector_store_file_file", "vector_store_file", ["id"])
