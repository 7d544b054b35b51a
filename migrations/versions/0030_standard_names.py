"""Columns and indexes get the standard terms that the code uses. The rows stay as they are."""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None

#: Table → old name → new name of columns.
_COLUMNS = {
    "job": {"beat": "heartbeat", "losses": "lost_leases", "stumbles": "failed_attempts"},
    "shard": {"beat": "heartbeat", "trying_line": "isolated_line", "trying_times": "isolated_attempts"},
    "outbox": {"rung_at": "published_at", "rings": "publish_count"},
    "worker": {"beat": "heartbeat", "place": "host_devices", "holds": "engines", "unclaimed": "other_work"},
    "engine_death": {"place": "host_devices"},
    "quarantine": {"place": "host_devices"},
    "idempotency": {"beat_at": "heartbeat_at"},
}


def upgrade() -> None:
    for table, names in _COLUMNS.items():
        for old, new in names.items():
            op.alter_column(table, old, new_column_name=new)
    op.drop_index("ix_engine_death_place", "engine_death")
    op.create_index("ix_engine_death_host_devices", "engine_death", ["host_devices", "model"])
    op.drop_index("ix_outbox_rung", "outbox")
    published = sa.text("published_at IS NOT NULL")
    op.create_index(
        "ix_outbox_published",
        "outbox",
        ["queue", "project_id"],
        sqlite_where=published,
        postgresql_where=published,
    )
