"""The table of kinds: one row for each kind of job, with everything in which the ledger treats kinds differently.

    a room's module ──row──▶ jobs.known_kinds ──register──▶ this table ◀── ledger, outbox queries, progress
                                                                       ◀── api, workers (`workers.kinds`: the handlers)

The ledger imports no room. A process that moves jobs imports `jobs.known_kinds` once, which fills the table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict
from sqlalchemy import ColumnElement, Select, SQLColumnExpression, and_, exists, false, or_
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import InvalidRequest, NightmillError
from jobs.files.tables import File
from jobs.ledger.states import LIVE, JobState
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.settings import Settings


class Payload(BaseModel):
    """The base of the payload of every kind: validated by the API, parsed again by the worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class UnknownKind(NightmillError):
    """A job whose kind this version does not know."""

    text = "This version has no row for that kind of job."
    code = "unknown_kind"


class CompletionWindow(NamedTuple):
    """A completion window, as clients write it and in seconds."""

    label: str
    seconds: float


DAY: Final = CompletionWindow("24h", 86_400.0)


class StorageFolder(NamedTuple):
    """A folder of the storage. An object in it under an id that `owners` lacks is left over from a crash."""

    name: str
    owners: SQLColumnExpression[str]

    flat: bool
    """The folder has one object for each id; otherwise it has a folder of objects for each id."""


class SegmentUsage(NamedTuple):
    """The usage of a segment: requests, and tokens by their columns."""

    at: float
    """The time of its commit, in unix seconds."""

    whole: Mapping[str, int]

    from_cache: Mapping[str, int]
    """The part of it that answers from the cache took."""


#: The lines of an ended job that a retry runs: those that failed or are missing, those cut off at the token limit, all.
Which = Literal["failed", "length", "all"]


@dataclass(frozen=True, slots=True)
class Retry:
    """A request to run an ended job again, as a new job over the same input."""

    job: Job
    """The ended job, which does not change."""

    which: Which
    """The lines of the new job."""

    overrides: dict[str, Any]
    """Fields that replace those of each line."""

    window: str | None
    """The completion window of the new job; None: as before."""

    priority: int | None
    """The priority of the new job; None: as before."""

    key: str | None
    """The idempotency key of the request."""

    request_id: str
    actor: str
    config: Settings

    @property
    def columns(self) -> dict[str, Any]:
        """Return the columns of the new job that tell of the request."""
        return {"idempotency_key": self.key, "request_id": self.request_id, "retry_of": self.job.id}

    def check_unchanged(self, noun: str, *allowed: Which) -> None:
        """Check the retry of a job that is retried as it was asked for. Raises InvalidRequest."""
        if self.which not in allowed or self.overrides:
            param = "overrides" if self.overrides else "which"
            message = f"A {noun} is retried as it was asked for: 'overrides' and 'which' do not apply."
            raise InvalidRequest(message, param=param, code="invalid_value")

    def lock_input(self, session: Session) -> File:
        """Return the input file of the job, locked against its deletion. Raises InvalidRequest when it is gone."""
        file = session.get(File, self.job.input_file_id or "", with_for_update={"read": True})
        if file is None or file.deleted_at is not None or (file.expires_at is not None and file.expires_at <= now()):
            message = f"The input file '{self.job.input_file_id}' of job '{self.job.id}' is gone."
            raise InvalidRequest(message, param="input_file_id", code="input_file_gone")
        return file


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job: what the ledger, the API and the dispatcher do with its jobs."""

    name: str
    """The value of `Job.kind`."""

    label: str
    """The kind in the words of the console and the command."""

    prefix: str
    """Ids of jobs that clients created start with this."""

    payload: type[Payload]
    """The model of `Job.payload`."""

    events: Mapping[str, str]
    """The type of the event that tells of the end of a job that a client created, by terminal state.

    Every other move, and the end of another job, is told as `job.<state>`.
    """

    other_events: Mapping[str, str] = field(default_factory=dict)
    """Further types of events that the kind causes, each with the prefix of the ids of what it tells of."""

    resources: tuple[str, ...] = ()
    """The resources of the API whose answers change with a job's events, beside `jobs`: what follows `/v1/`."""

    links: Mapping[str, Callable[[Mapping[str, Any]], str]] = field(default_factory=dict)
    """Return the id of another object from the payload of a job, by the field of the API's job that shows it."""

    permission: str = "api.batch.write"
    """The permission to make a job of the kind, which its key must still have when the job runs."""

    run_queue: str = Queue.GENERATE
    """The queue of a shard whose job names none."""

    window: CompletionWindow | None = DAY
    """The completion window of a job that asks for none; a job without a window has no deadline."""

    slot_weight: float | None = None
    """The part of a worker's slot that a shard takes; None: in proportion to its lines."""

    counted: bool = True
    """The input of a job counts in its project's quota of waiting tokens."""

    is_batch: bool = False
    """The usage of a job is that of a batch."""

    retry: Callable[[Session, Retry], Job] | None = None
    """Submit the retry of an ended job in the caller's transaction; None: jobs of the kind are not retried."""

    has_lines: bool = True
    """The shards of a job are lines with a result each, which clients may read."""

    holds: Callable[[SQLColumnExpression[str]], ColumnElement[bool]] | None = None
    """Return the condition that a file stays because of a job, beside that a live job has it as its input."""

    folders: tuple[StorageFolder, ...] = ()
    """The folders of the storage that belong to the kind."""

    stored_bytes: Mapping[str, Select[str, Any]] = field(default_factory=dict)
    """The sums of the bytes that each project stores, by what is stored: rows of a project and its sum."""

    result: SQLColumnExpression[str] | None = None
    """A column with the id of each job whose result a client may still fetch; None: a job results in files."""

    shows_segments: bool = False
    """The result of a job is its own segments, which stay as long as the job is in `result`."""

    named_by: tuple[SQLColumnExpression[str | None], ...] = ()
    """Columns of other rows that name a job, which stays as long as one of them does."""

    stop: Callable[[Session, Job, JobState, Sequence[Mapping[str, Any]]], bool] | None = None
    """End a limited number of a locked job's unfinished items with its errors; return whether more may be left."""

    record_segment: Callable[[Session, Job, SegmentUsage], None] | None = None
    """Record what a segment took, in the transaction that commits it."""

    ended: Callable[[Session, Job], None] | None = None
    """Do what belongs to the end of a job, in the transaction that ends it."""

    def times(self, created_at: float) -> dict[str, Any]:
        """Return the columns of a new job that asks for no window of its own."""
        if self.window is None:
            return {"created_at": created_at, "window": "", "deadline": None}
        return {"created_at": created_at, "window": self.window.label, "deadline": created_at + self.window.seconds}

    def event(self, job_id: str, state: str) -> str:
        """Return the type of the event that tells of a job's coming into a state."""
        usual = f"job.{state}"
        return self.events.get(state, usual) if job_id.startswith(self.prefix) else usual


#: The rows by name. `register` alone writes here.
TABLE: Final[dict[str, Kind]] = {}
#: What the ledger does with a job of a kind that only another version knows: it can still end.
_UNKNOWN: Final = Kind("unknown", "", "", Payload, {})


def register(*rows: Kind) -> None:
    """Add rows to the table."""
    TABLE.update((row.name, row) for row in rows)


def rows() -> Mapping[str, Kind]:
    """Return the rows by name.

    Raises RuntimeError in a process that did not fill the table: what it writes would leave out what rooms do.
    """
    if not TABLE:
        raise RuntimeError("no kinds of jobs are registered: import jobs.known_kinds")
    return TABLE


def of(name: str) -> Kind:
    """Return the row of a kind. Raises UnknownKind."""
    if (row := rows().get(name)) is None:
        raise UnknownKind(f"This version knows no jobs of kind '{name}'.")
    return row


def lenient(name: str) -> Kind:
    """Return the row of a kind, or one without anything special for an unknown kind."""
    return rows().get(name, _UNKNOWN)


def names(which: Callable[[Kind], bool]) -> tuple[str, ...]:
    """Return the names of the kinds for which `which` holds, to filter jobs in a query."""
    return tuple(row.name for row in rows().values() if which(row))


def links(job: Job) -> dict[str, Any]:
    """Return the ids of other objects that a job names, by the field of the API's job; None in those of other kinds."""
    none = dict.fromkeys(chain.from_iterable(row.links for row in rows().values()))
    return {**none, **{name: find(job.payload) for name, find in lenient(job.kind).links.items()}}


def is_read(file_id: SQLColumnExpression[str]) -> ColumnElement[bool]:
    """Return the condition that a live job of any kind reads the file, whatever names the file."""
    others = [row.holds(file_id) for row in rows().values() if row.holds]
    return or_(exists().where(Job.input_file_id == file_id, Job.state.in_(LIVE)), *others)


def is_named() -> ColumnElement[bool]:
    """Return the condition that a row of another table needs the job: its result, or one that names it."""
    columns = list[tuple[str, SQLColumnExpression[str | None]]]()
    for row in rows().values():
        columns += [(row.name, column) for column in row.named_by]
        if row.result is not None:
            columns.append((row.name, row.result))
    return or_(*(and_(Job.kind == kind, exists().where(column == Job.id)) for kind, column in columns), false())


def event_types() -> dict[str, str]:
    """Return the types of events that webhooks may subscribe to, each with the id prefix of what it tells of."""
    types: dict[str, str] = {}
    for row in rows().values():
        types.update({**dict.fromkeys(row.events.values(), row.prefix), **row.other_events})
    return types
