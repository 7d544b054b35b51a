"""Which stores hold a file that was made from the same content in the same way."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    made = sa.text("recipe IS NOT NULL")
    op.create_index(
        "ix_vector_store_file_recipe", "vector_store_file", ["recipe"], sqlite_where=made, postgresql_where=made
    )
