"""What the dispatcher looks at many times a second, without a look at everything that waits."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_outbox_order", "outbox")
    op.drop_index("ix_outbox_rung", "outbox")
    _partial("ix_outbox_order", "outbox", ["queue", "project_id", sa.text("priority DESC"), "deadline", "id"],
             "rung_at IS NULL")  # fmt: skip
    _partial("ix_outbox_rung", "outbox", ["queue", "project_id"], "rung_at IS NOT NULL")
    _partial("ix_job_claimed", "job", ["project_id"], "worker_id IS NOT NULL")


def _partial(name: str, table: str, columns: list[str | sa.TextClause], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
