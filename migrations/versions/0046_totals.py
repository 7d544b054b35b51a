"""Running sums over ended jobs, so that metrics do not read them, and measures that no transaction waits for.

Also one index of `job` less, and more room for updates.

The sums are filled from the jobs whose ends are sealed in the audit log by now. `jobs.ledger.totals` counts every later
end, also one that an earlier version writes or seals meanwhile. Locks that keep others waiting are taken at the end.
"""

import sqlalchemy as sa
from alembic import op

revision = "0046"
down_revision = "0045"
branch_labels = None
depends_on = None

_TERMINAL = ("succeeded", "failed", "expired", "cancelled")
#: The name and the part of each sum by model, by the column that is added up.
_SUMS = {
    "completed": ("items", "completed"),
    "failed": ("items", "failed"),
    "input_tokens": ("tokens", "input"),
    "cached_tokens": ("tokens", "cached"),
    "output_tokens": ("tokens", "output"),
    "reasoning_tokens": ("tokens", "reasoning"),
}
#: Rows that are written several times in their short life. A fifth of dead rows, PostgreSQL's default, are millions.
_VACUUM = {"job": 0.02, "shard": 0.02, "event": 0.02, "audit": 0.02, "outbox": 0.01, "measure_change": 0.01}

_job = sa.table("job", *map(sa.column, ("id", "kind", "state", "model", "lost_leases", *_SUMS)))
_outcome = sa.table("outcome", *map(sa.column, ("job_id", "name", "count")))
_audit = sa.table("audit", *map(sa.column, ("target", "action", "destination", "seal")))
_head = sa.table("audit_head", *map(sa.column, ("id", "seal", "counted")))
_total = sa.table("total", *map(sa.column, ("name", "label", "part", "count")))
_NOTHING = sa.literal_column("''")
#: The seal up to which ends are counted: the same for all statements, though rows are sealed meanwhile.
_COUNTED = sa.select(_total.c.count).where(_total.c.name == "counted").scalar_subquery()


def upgrade() -> None:
    op.create_table(
        "total",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("label", sa.String(255), nullable=False),
        sa.Column("part", sa.String(80), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "label", "part", name="pk_total"),
    )
    op.create_table(
        "measure_change",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=True, nullable=False),
        sa.Column("changes", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_measure_change"),
    )
    _add(sa.select(sa.literal("counted"), _NOTHING, _NOTHING, _head.c.seal).where(_head.c.id == 1))
    _add(sa.union_all(*_sums()))
    _add(_outcomes())
    if op.get_context().dialect.name == "postgresql":
        for table, factor in _VACUUM.items():
            op.execute(f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = {factor})")
        op.execute("ALTER TABLE shard SET (fillfactor = 80)")  # heartbeats and progress fit into the row's own page
    op.drop_index("ix_job_kind_state", "job")
    op.add_column("audit_head", sa.Column("counted", sa.BigInteger(), nullable=True))
    op.execute(sa.update(_head).where(_head.c.id == 1).values(counted=_COUNTED))
    op.execute(sa.delete(_total).where(_total.c.name == "counted"))


def _add(rows: sa.Select | sa.CompoundSelect) -> None:  # type: ignore[type-arg]
    op.execute(sa.insert(_total).from_select(["name", "label", "part", "count"], rows))


def _ended() -> tuple[sa.ColumnElement[bool], ...]:
    """Return the condition that a job has ended, and that its end is counted."""
    is_later = sa.or_(_audit.c.seal.is_(None), _audit.c.seal > _COUNTED)
    is_end = _audit.c.action == "job.move", _audit.c.destination.in_(_TERMINAL)
    return _job.c.state.in_(_TERMINAL), _job.c.id.not_in(sa.select(_audit.c.target).where(*is_end, is_later))


def _sums() -> list[sa.Select]:  # type: ignore[type-arg]
    """Return the sums over jobs, which are read once."""
    group = _job.c.kind, _job.c.state, _job.c.model
    columns = [sa.func.sum(_job.c[name]).label(name) for name in ("lost_leases", *_SUMS)]
    jobs = sa.select(*group, sa.func.count().label("jobs"), *columns).where(*_ended()).group_by(*group).cte("sums")
    by_kind = sa.select(sa.literal("jobs"), jobs.c.kind, jobs.c.state, sa.func.sum(jobs.c.jobs))
    lost = sa.select(sa.func.sum(jobs.c.lost_leases).label("count")).subquery()
    of_all = sa.select(sa.literal("lost_leases"), _NOTHING, _NOTHING, lost.c.count).where(lost.c.count.is_not(None))
    sums = [by_kind.group_by(jobs.c.kind, jobs.c.state), of_all]
    model = sa.func.coalesce(jobs.c.model, _NOTHING)
    for column, (name, part) in _SUMS.items():
        sums.append(sa.select(sa.literal(name), model, sa.literal(part), sa.func.sum(jobs.c[column])).group_by(model))
    return sums


def _outcomes() -> sa.Select:  # type: ignore[type-arg]
    model = sa.func.coalesce(_job.c.model, _NOTHING)
    rows = sa.select(sa.literal("outcomes"), model, _outcome.c.name, sa.func.sum(_outcome.c.count)).where(*_ended())
    return rows.join_from(_job, _outcome, _outcome.c.job_id == _job.c.id).group_by(model, _outcome.c.name)
