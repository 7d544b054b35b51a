"""Which parts a completed upload was made of. Uploads that were completed before do not say."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("upload", sa.Column("parts_sha256", sa.String(64), nullable=True))
