"""Keys that manage keys and remember the key that created them; an audit log that is signed.

Keys of projects from before manage none. The release step has `operator.key` manage those of its project again. The
creator of a key from before is the actor in its row of the audit log.
"""

import sqlalchemy as sa
from alembic import op

revision = "0044"
down_revision = "0043"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_key", sa.Column("manages_keys", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("api_key", sa.Column("created_by", sa.String(16)))
    op.create_index("ix_api_key_created_by", "api_key", ["created_by"])
    op.execute(
        "UPDATE api_key SET created_by = ("
        "SELECT max(substr(audit.actor, 5)) FROM audit WHERE audit.target = api_key.id "
        "AND audit.action = 'key.create' AND audit.actor LIKE 'key:%')"
    )
    op.add_column("audit_head", sa.Column("signed", sa.BigInteger()))
    op.add_column("audit_head", sa.Column("signature", sa.String(64)))
