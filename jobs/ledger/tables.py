"""Jobs, what they wait for, their shards, the segments of results, and the outbox; the audit log."""

from typing import Any

from sqlalchemy import Index, LargeBinary, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base, Serial
from jobs.ledger.states import JobState, ShardState

#: The columns of `Usage`, in its order.
TOKENS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


def _partial_index(name: str, *columns: str, empty: str) -> Index:
    """Return an index of the rows whose column `empty`, which most rows leave empty, has a value."""
    there = text(f"{empty} IS NOT NULL")
    return Index(name, *columns, sqlite_where=there, postgresql_where=there)


class Usage:
    """Tokens: `cached` is a part of `input`, `reasoning` a part of `output`."""

    input_tokens: Mapped[int] = mapped_column(default=0)
    cached_tokens: Mapped[int] = mapped_column(default=0)
    output_tokens: Mapped[int] = mapped_column(default=0)
    reasoning_tokens: Mapped[int] = mapped_column(default=0)


class Job(Usage, Base):
    """One job of any kind. `state` is written by `jobs.ledger.ledger` alone.

    `epoch`, `worker_id`, `heartbeat` are the claim on its planning or finishing. `total`, `completed`, `failed` and
    the tokens are final only in a terminal state; until then they are sums over the shards. `parent_id` is the job that
    this one was made for; to cancel the parent cancels it. `waiting_for` is `job` until its predecessors completed.
    `model` is the name that its requests ask for; `serves_as` is the model that a worker must have where that is
    another: the base of a tuned model. `key_id` is the key that the job was made with; null where none is known.
    """

    __tablename__ = "job"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str | None] = mapped_column(String(16))
    kind: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16), default=JobState.QUEUED)
    endpoint: Mapped[str] = mapped_column(String(64), default="")
    model: Mapped[str | None]
    serves_as: Mapped[str | None]
    queue: Mapped[str | None] = mapped_column(String(64))
    payload: Mapped[dict[str, Any]]
    input_file_id: Mapped[str | None] = mapped_column(String(64))
    input_path: Mapped[str | None]
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    priority: Mapped[int] = mapped_column(default=0)
    window: Mapped[str] = mapped_column(String(16), default="24h")  # "" without a deadline
    not_before: Mapped[float | None]
    deadline: Mapped[float | None]
    waiting_for: Mapped[str | None] = mapped_column(String(64))

    epoch: Mapped[int] = mapped_column(default=0)
    heartbeat: Mapped[int] = mapped_column(default=0)
    worker_id: Mapped[str | None] = mapped_column(String(64))
    lost_leases: Mapped[int] = mapped_column(default=0)  # claims on it or its shards that ended by their lease
    failed_attempts: Mapped[int] = mapped_column(default=0, server_default=text("0"))  # to plan or finish it
    event_seq: Mapped[int] = mapped_column(default=0)

    total: Mapped[int] = mapped_column(default=0)
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    errors: Mapped[list[Any] | None]
    output_file_id: Mapped[str | None] = mapped_column(String(64))
    error_file_id: Mapped[str | None] = mapped_column(String(64))

    created_at: Mapped[float]
    in_progress_at: Mapped[float | None]
    finalizing_at: Mapped[float | None]
    completed_at: Mapped[float | None]
    failed_at: Mapped[float | None]
    expiring_at: Mapped[float | None]
    expired_at: Mapped[float | None]
    cancelling_at: Mapped[float | None]
    cancelled_at: Mapped[float | None]

    idempotency_key: Mapped[str | None]
    retry_of: Mapped[str | None] = mapped_column(String(64))
    parent_id: Mapped[str | None] = mapped_column(String(64))
    schedule_id: Mapped[str | None] = mapped_column(String(64))
    webhook_url: Mapped[str | None] = mapped_column(Text)
    webhook_secret: Mapped[str | None]
    request_id: Mapped[str | None] = mapped_column(String(64))

    __table_args__ = (
        Index("ix_job_project_created", "project_id", "created_at", "id"),
        Index("ix_job_project_state", "project_id", "state", "created_at", "id"),
        Index("ix_job_project_model", "project_id", "model", "created_at", "id"),
        Index("ix_job_project_kind", "project_id", "kind", "created_at", "id"),
        Index("ix_job_state_deadline", "state", "deadline"),
        Index("ix_job_input_file", "input_file_id"),
        _partial_index("ix_job_output", "output_file_id", empty="output_file_id"),
        _partial_index("ix_job_errors", "error_file_id", empty="error_file_id"),
        _partial_index("ix_job_key", "key_id", "state", empty="key_id"),
        _partial_index("ix_job_scheduled", "project_id", "schedule_id", "created_at", "id", empty="schedule_id"),
        _partial_index("ix_job_idempotency_key", "project_id", "idempotency_key", empty="idempotency_key"),
        Index(
            "ix_job_claimed",
            "project_id",
            sqlite_where=text("worker_id IS NOT NULL"),
            postgresql_where=text("worker_id IS NOT NULL"),
        ),
        Index(
            "ix_job_parent",
            "parent_id",
            "state",
            sqlite_where=text("parent_id IS NOT NULL"),
            postgresql_where=text("parent_id IS NOT NULL"),
        ),
        Index(
            "ix_job_waiting_for_job",
            "id",
            sqlite_where=text("waiting_for = 'job'"),
            postgresql_where=text("waiting_for = 'job'"),
        ),
    )


class JobDependency(Base):
    """An edge: `job_id` is not planned before `after_id` has completed, see `jobs.ledger.dependencies`."""

    __tablename__ = "job_dependency"

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    after_id: Mapped[str] = mapped_column(String(64), primary_key=True)

    __table_args__ = (Index("ix_job_dependency_after", "after_id"),)


class Shard(Usage, Base):
    """A byte range of the job's input. `progressed` says whether this claim has committed anything.

    `epoch` is the fencing token. `queue` is where the shard is run for now; without one, it is its job's. `outcomes` is
    the sum of its segments', once the shard is done (null: it is not, or a version ended it that did not sum them).
    `started_at` is of the claim that brought the first results, until there are any of the last claim: claims that only
    met a missing model do not count. `max_output_tokens` is the most that its lines may answer, as far as the planner
    knows it; while the shard runs, what that may cost is reserved (`jobs.usage.budgets`).
    """

    __tablename__ = "shard"

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    first_line: Mapped[int]
    lines: Mapped[int]
    offset: Mapped[int]
    length: Mapped[int]
    max_output_tokens: Mapped[int | None]
    queue: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default=ShardState.PENDING)
    epoch: Mapped[int] = mapped_column(default=0)
    heartbeat: Mapped[int] = mapped_column(default=0)
    worker_id: Mapped[str | None] = mapped_column(String(64))
    progressed: Mapped[bool] = mapped_column(default=False)
    stalls: Mapped[int] = mapped_column(default=0)
    isolated_line: Mapped[int | None]
    isolated_attempts: Mapped[int] = mapped_column(default=0)
    faults: Mapped[dict[str, Any] | None]  # line → how its request broke, kept over attempts
    done: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    outcomes: Mapped[dict[str, Any] | None]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]

    __table_args__ = (
        Index("ix_shard_job_state", "job_id", "state"),
        Index(
            "ix_shard_running",
            "worker_id",
            sqlite_where=text("state = 'running'"),
            postgresql_where=text("state = 'running'"),
        ),
    )


class Segment(Usage, Base):
    """An immutable file of results. `covered` and `good` are bitmaps over the shard's lines, bit 0 first.

    `covered` holds the lines with a result here, `good` those of them that succeeded, `cut_off` those whose answer
    ended at the token limit (null: written before these were noted), `outcomes` how many there are of each word of
    `workers.runtime.outcomes` (null: written before these were counted). `done` and `failed` count lines (0 where
    written before these were counted).
    """

    __tablename__ = "segment"

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[str]
    length: Mapped[int]
    covered: Mapped[bytes] = mapped_column(LargeBinary)
    good: Mapped[bytes] = mapped_column(LargeBinary)
    cut_off: Mapped[bytes | None] = mapped_column(LargeBinary)
    outcomes: Mapped[dict[str, Any] | None]
    done: Mapped[int] = mapped_column(default=0, server_default="0")
    failed: Mapped[int] = mapped_column(default=0, server_default="0")
    created_at: Mapped[float]

    __table_args__ = (Index("ix_segment_created", "created_at"),)


class Outcome(Base):
    """The number of lines of an ended job with one outcome of `workers.runtime.outcomes`."""

    __tablename__ = "outcome"

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    count: Mapped[int]


class Outbox(Base):
    """An outbox message: pending from its insertion until the work is claimed, which deletes it."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    task: Mapped[str] = mapped_column(String(16))
    queue: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(String(64))
    shard_n: Mapped[int] = mapped_column(default=-1)  # -1: the job itself (NULLs are never unique)
    project_id: Mapped[str] = mapped_column(String(64))
    priority: Mapped[int] = mapped_column(default=0)
    deadline: Mapped[float]
    created_at: Mapped[float]
    due_at: Mapped[float]
    published_at: Mapped[float | None]
    publish_count: Mapped[int] = mapped_column(default=0)

    __table_args__ = (
        UniqueConstraint("task", "job_id", "shard_n"),
        Index(
            "ix_outbox_order",
            "queue",
            "project_id",
            priority.desc(),
            "deadline",
            "id",
            sqlite_where=text("published_at IS NULL"),
            postgresql_where=text("published_at IS NULL"),
        ),
        Index(
            "ix_outbox_published",
            "queue",
            "project_id",
            sqlite_where=text("published_at IS NOT NULL"),
            postgresql_where=text("published_at IS NOT NULL"),
        ),
        Index("ix_outbox_job", "job_id"),
        {"sqlite_autoincrement": True},  # the id of a deleted message is never used again
    )


class Audit(Base):
    """One job transition or mutating call. `seal` and `hash` are added within a second by the leading dispatcher."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    at: Mapped[int]  # microseconds since 1970
    actor: Mapped[str] = mapped_column(String(96))
    action: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str | None] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(128))
    source: Mapped[str | None] = mapped_column(String(32))
    destination: Mapped[str | None] = mapped_column(String(32))
    request_id: Mapped[str | None] = mapped_column(String(64))
    details: Mapped[dict[str, Any] | None]
    seal: Mapped[int | None] = mapped_column(unique=True)
    hash: Mapped[str | None] = mapped_column(String(64))

    __table_args__ = (
        Index("ix_audit_target", "target"),
        Index("ix_audit_project", "project_id", "at", "id"),
        Index("ix_audit_actor", "project_id", "actor", "at", "id"),
        Index("ix_audit_action", "project_id", "action", "at", "id"),
        Index("ix_audit_at_id", "at", "id"),
        Index("ix_audit_project_id_id", "project_id", "id"),
        Index("ix_audit_actor_id", "actor", "id"),
        Index("ix_audit_action_id", "action", "id"),
        Index(
            "ix_audit_unsealed",
            "id",
            sqlite_where=text("seal IS NULL"),
            postgresql_where=text("seal IS NULL"),
        ),
    )


class AuditHead(Base):
    """The last seal and its hash, and the last seal that is signed, with the signature of its hash: row 1.

    `counted` is the last seal up to which `total` has the jobs that ended. Row 2 is the start of the chain, the last
    row that retention has removed. See `jobs.ledger.audit`.
    """

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seal: Mapped[int] = mapped_column(default=0)
    hash: Mapped[str] = mapped_column(String(64))
    signed: Mapped[int | None]
    signature: Mapped[str | None] = mapped_column(String(64))
    counted: Mapped[int | None]


class Total(Base):
    """A running sum over all jobs that have ended, see `jobs.ledger.totals`."""

    __tablename__ = "total"

    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)  # a kind or a model
    part: Mapped[str] = mapped_column(String(80), primary_key=True)
    count: Mapped[int]
