"""Which answers of a segment were cut off at the token limit. Segments from before do not say."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("segment", sa.Column("cut_off", sa.LargeBinary(), nullable=True))
