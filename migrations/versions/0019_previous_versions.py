"""Which files an item's newest version has outlived is looked up by every search."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_SOME = sa.text("previous_id IS NOT NULL")


def upgrade() -> None:
    op.create_index(
        "ix_source_item_previous", "source_item", ["previous_id"], sqlite_where=_SOME, postgresql_where=_SOME
    )
