"""Index keys by owner, jobs by key and the audit log by its filters, and let a project take an archived one's name."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from migrations.locks import create_index

revision = "0049"
down_revision = "0048"
branch_labels = None
depends_on = None


def where(condition: str) -> dict[str, Any]:
    """Return the options of an index that holds only the rows that meet the condition."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    create_index("ix_api_key_owner_id", "api_key", ["owner_id"])
    create_index("ix_job_key", "job", ["key_id", "state"], **where("key_id IS NOT NULL"))
    for column in ("project_id", "actor", "action"):
        create_index(f"ix_audit_{column}_id", "audit", [column, "id"])
    create_index("uq_project_live_name", "project", ["name"], unique=True, **where("archived_at IS NULL"))
    with op.batch_alter_table("project") as table:
        table.drop_constraint("uq_project_name", type_="unique")
