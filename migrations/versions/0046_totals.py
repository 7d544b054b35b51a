"""Running sums over ended jobs, so that metrics do not read them; fewer indexes of `job`, and more room for updates.

The sums are filled from the jobs whose ends are sealed in the audit log by now. `jobs.ledger.totals` counts every later
end, also one that an earlier version writes or seals meanwhile.
"""

from collections import Counter

import sqlalchemy as sa
from alembic import op

revision = "0046"
down_revision = "0045"
branch_labels = None
depends_on = None

_SUMS = ("completed", "failed", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "lost_leases")
_TERMINAL = ("succeeded", "failed", "expired", "cancelled")
_job = sa.table("job", *map(sa.column, ("id", "kind", "state", "model", *_SUMS)))
_outcome = sa.table("outcome", *map(sa.column, ("job_id", "name", "count")))
_audit = sa.table("audit", *map(sa.column, ("target", "action", "destination", "seal")))
#: Indexes of columns that most jobs leave empty: the index, its columns, the column that is empty.
_PARTIAL = {
    "ix_job_output_file": (["output_file_id"], "output_file_id"),
    "ix_job_error_file": (["error_file_id"], "error_file_id"),
    "ix_job_schedule": (["project_id", "schedule_id", "created_at", "id"], "schedule_id"),
    "ix_job_idempotency": (["project_id", "idempotency_key"], "idempotency_key"),
}
#: Rows that are written several times in their short life. A fifth of dead rows, PostgreSQL's default, are millions.
_VACUUM = {"job": 0.02, "shard": 0.02, "event": 0.02, "audit": 0.02, "outbox": 0.01}


def upgrade() -> None:
    total = op.create_table(
        "total",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("label", sa.String(255), nullable=False),
        sa.Column("part", sa.String(80), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "label", "part", name="pk_total"),
    )
    counted = op.get_bind().scalar(sa.text("SELECT seal FROM audit_head WHERE id = 1")) or 0
    if sums := _sums(counted):
        rows = [{"name": name, "label": label, "part": part, "count": n} for (name, label, part), n in sums.items()]
        op.bulk_insert(total, rows)
    for name, (columns, empty) in _PARTIAL.items():
        op.drop_index(name, "job")
        there = sa.text(f"{empty} IS NOT NULL")
        op.create_index(name, "job", columns, sqlite_where=there, postgresql_where=there)
    op.drop_index("ix_job_kind_state", "job")
    if op.get_bind().dialect.name == "postgresql":
        for table, factor in _VACUUM.items():
            op.execute(f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = {factor})")
        op.execute("ALTER TABLE shard SET (fillfactor = 80)")  # heartbeats and progress fit into the row's own page
    op.add_column("audit_head", sa.Column("counted", sa.BigInteger(), nullable=True))
    op.execute(sa.text("UPDATE audit_head SET counted = :counted WHERE id = 1").bindparams(counted=counted))


def _sums(counted: int) -> Counter[tuple[str, str, str]]:
    """Return the sums over the jobs that ended up to the seal `counted`: one pass over `job`, one over `outcome`."""
    is_later = sa.or_(_audit.c.seal.is_(None), _audit.c.seal > counted)
    later = sa.select(_audit.c.target).where(
        _audit.c.action == "job.move", _audit.c.destination.in_(_TERMINAL), is_later
    )
    ended = _job.c.state.in_(_TERMINAL), _job.c.id.not_in(later)
    group = _job.c.kind, _job.c.state, _job.c.model
    jobs = sa.select(*group, sa.func.count(), *(sa.func.sum(_job.c[name]) for name in _SUMS)).where(*ended)
    outcomes = sa.select(_job.c.model, _outcome.c.name, sa.func.sum(_outcome.c.count)).where(*ended)
    outcomes = outcomes.join_from(_job, _outcome, _outcome.c.job_id == _job.c.id)
    sums = Counter[tuple[str, str, str]]()
    for kind, state, model, count, completed, failed, *tokens, lost_leases in op.get_bind().execute(
        jobs.group_by(*group)
    ):
        sums["jobs", kind, state] += count
        sums["lost_leases", "", ""] += int(lost_leases)
        sums["items", model or "", "completed"] += int(completed)
        sums["items", model or "", "failed"] += int(failed)
        for name, used in zip(("input", "cached", "output", "reasoning"), tokens, strict=True):
            sums["tokens", model or "", name] += int(used)
    for model, name, count in op.get_bind().execute(outcomes.group_by(_job.c.model, _outcome.c.name)):
        sums["outcomes", model or "", name] += int(count)
    return sums
