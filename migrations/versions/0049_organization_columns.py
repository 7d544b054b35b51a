"""Add to projects, keys, jobs and schedules what the organization has of them, and index it.

Each key of a project becomes the key of a service account of its own, so that nothing has to be made anew. Live jobs
and schedules get the key that made them, unless it is revoked: they went on without it. An operator's key gets the
scopes of what it could do.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from migrations.locks import add_columns, commit, create_index

revision = "0049"
down_revision = "0048"
branch_labels = None
depends_on = None


def where(condition: str) -> dict[str, Any]:
    """Return the options of an index that holds only the rows that meet the condition."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    for table in ("job", "schedule"):
        add_columns(table, sa.Column("key_id", sa.String(16)))
    add_columns("shard", sa.Column("max_output_tokens", sa.BigInteger()))
    add_columns(
        "project",
        *(sa.Column(name, sa.JSON()) for name in ("limits", "service_tiers", "hosted_tools")),
        sa.Column("retention", sa.String(32)),
        sa.Column("archived_at", sa.Float(53)),
    )
    add_columns(
        "api_key",
        sa.Column("name", sa.String(255)),
        sa.Column("hint", sa.String(8)),
        sa.Column("owner_id", sa.String(64)),
        sa.Column("scopes", sa.JSON()),
        *(sa.Column(name, sa.Float(53)) for name in ("expires_at", "last_used_at")),
    )
    create_index("ix_api_key_owner_id", "api_key", ["owner_id"])
    create_index("ix_job_key", "job", ["key_id", "state"], **where("key_id IS NOT NULL"))
    for column in ("project_id", "actor", "action"):
        create_index(f"ix_audit_{column}_id", "audit", [column, "id"])
    create_index("ix_audit_at_id", "audit", ["at", "id"])
    create_index("uq_invite_pending_email", "invite", ["email"], unique=True, **where("accepted_at IS NULL"))
    create_index("uq_project_live_name", "project", ["name"], unique=True, **where("archived_at IS NULL"))
    _give_owners()
    _give_keys()
    commit()
    with op.batch_alter_table("project") as table:
        table.drop_constraint("uq_project_name", type_="unique")


def _give_owners() -> None:
    op.execute(
        "INSERT INTO service_account (id, project_id, name, role, created_at, deleted_at) "
        "SELECT 'svc_acct_' || id, project_id, 'key ' || id, 'member', created_at, NULL "
        "FROM api_key WHERE project_id <> '' AND owner_id IS NULL"
    )
    op.execute(
        "UPDATE api_key SET name = 'key ' || id, owner_id = 'svc_acct_' || id "
        "WHERE project_id <> '' AND owner_id IS NULL"
    )
    op.execute(
        "UPDATE api_key SET name = 'key ' || id, scopes = '[\"api.deployment.read\", \"api.deployment.write\"]' "
        "WHERE project_id = ''"
    )


def _give_keys() -> None:
    job = sa.table("job", *map(sa.column, ("id", "project_id", "key_id", "state", "schedule_id")))
    schedule = sa.table("schedule", *map(sa.column, ("id", "project_id", "key_id")))
    is_open = job.c.state.in_(("queued", "running"))
    of_schedule = sa.select(schedule.c.key_id).where(schedule.c.id == job.c.schedule_id).scalar_subquery()
    op.execute(schedule.update().values(key_id=_creator_of(schedule, "schedule.create")))
    op.execute(job.update().where(is_open).values(key_id=_creator_of(job, "job.submit")))
    op.execute(job.update().where(is_open, job.c.key_id.is_(None)).values(key_id=of_schedule))


def _creator_of(rows: sa.TableClause, action: str) -> sa.ScalarSelect[Any]:
    """Return the key that is not revoked and by which the audit log says that a row was made."""
    audit = sa.table("audit", *map(sa.column, ("target", "action", "actor")))
    key = sa.table("api_key", *map(sa.column, ("id", "project_id", "revoked_at")))
    made = (audit.c.target == rows.c.id, audit.c.action == action, audit.c.actor.like("key:%"))
    its_key = (key.c.id == sa.func.substr(audit.c.actor, 5), key.c.project_id == rows.c.project_id)
    return sa.select(sa.func.max(key.c.id)).where(*made, *its_key, key.c.revoked_at.is_(None)).scalar_subquery()
