"""The table of kinds: both halves of each row, what an unknown kind meets, and what a new kind needs."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from api.jobs import retry
from jobs.batches import batches
from jobs.clock import now
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.ids import new_id
from jobs.inference import responses
from jobs.ledger import kinds, ledger, shards, slot_weights
from jobs.ledger.kinds import Kind, Payload, UnknownKind
from jobs.ledger.ledger import JobClaim
from jobs.ledger.shards import ShardClaim, Tally
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Shard
from jobs.queues import Queue
from jobs.retrieval import ingestions
from jobs.security import keys
from jobs.settings import Settings
from tests.support import ledgers
from tests.support.mill import Mill, running
from workers.kinds import HANDLERS, Handler
from workers.runtime.attempts import ShardRun
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost
from workers.runtime.heartbeat import ClaimHandle


@pytest.fixture
def mill(db: Database, tmp_path: Path) -> Iterator[Mill]:
    with running(db, tmp_path) as mill:
        yield mill


def test_every_kind_has_both_halves() -> None:
    assert HANDLERS.keys() == kinds.TABLE.keys()
    assert retry.AGAIN.keys() == set(kinds.names(lambda kind: kind.retryable))
    assert all(kinds.of(name).name == name for name in kinds.TABLE)


def test_each_kind_tells_of_its_end_in_its_own_words() -> None:
    assert batches.KINDS[1].event("batch_1", JobState.SUCCEEDED) == "batch.completed"
    assert responses.RESPONSE.event("resp_1", JobState.EXPIRED) == "response.failed"
    assert ingestions.INGESTION.event("vsfb_1", JobState.CANCELLED) == "vector_store.file_batch.cancelled"
    assert ingestions.INGESTION.event("ing_1", JobState.CANCELLED) == "job.cancelled"
    assert responses.RESPONSE.event("resp_1", JobState.RUNNING) == "job.running"


def test_job_of_an_unknown_kind_is_not_submitted(db: Database) -> None:
    with pytest.raises(UnknownKind, match="no jobs of kind 'nothing'"), db.write() as session:
        ledger.submit(session, ledgers.new_job(kind="nothing"), actor="test")

    with db.read() as session:
        assert session.query(Job).count() == 0


def test_no_job_moves_in_a_process_that_knows_no_kinds(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ledgers.submitted(db)
    monkeypatch.setattr(kinds, "TABLE", {})

    with pytest.raises(RuntimeError, match="known_kinds"), db.write() as session:
        ledger.cancel(session, job.id, actor="test")

    assert ledgers.state(db, job.id) == JobState.QUEUED


def test_nothing_is_asked_of_a_table_that_was_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without the table would tell no webhook of an event, and delete files that live jobs read."""
    monkeypatch.setattr(kinds, "TABLE", {})

    for ask in (
        kinds.event_types,
        partial(kinds.names, bool),
        partial(kinds.is_read, File.id),
        partial(slot_weights.of_shards, Settings()),
    ):
        with pytest.raises(RuntimeError, match="known_kinds"):
            ask()


def test_job_of_a_kind_that_only_a_later_version_knows_fails_and_says_so(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setitem(kinds.TABLE, "later", Kind("later", "Later", "later_", Payload, {}))
        job_id = mill.submit(b"{}\n", id=new_id("later_"), kind="later")

    (job,) = mill.drain(job_id)

    assert (job.state, [error["code"] for error in job.errors or []]) == (JobState.FAILED, ["unknown_kind"])
    assert "no jobs of kind 'later'" in (job.errors or [{}])[0]["message"]
    assert ledgers.told(mill.db, job_id)[-1][1] == "job.failed"


def test_cancelled_job_of_an_unknown_kind_ends_too(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setitem(kinds.TABLE, "later", Kind("later", "Later", "later_", Payload, {}))
        job_id = mill.submit(b"{}\n", id=new_id("later_"), kind="later")
    with mill.db.write() as session:
        ledger.cancel(session, job_id, actor="test")

    (job,) = mill.drain(job_id)

    assert (job.state, [error["code"] for error in job.errors or []]) == (JobState.FAILED, ["unknown_kind"])


class Counting(Payload):
    """Count to `to`."""

    to: int


def _plan(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    lines = Counting.model_validate(claim.job.payload).to
    shard = Shard(job_id=claim.job.id, n=0, first_line=0, lines=lines, offset=0, length=0)

    def write(session: Session) -> None:
        shards.cut(session, claim, Queue.GENERATE, [shard])
        ledger.planned(session, claim, total=lines, model=None, queue=Queue.GENERATE)

    context.db.retrying(write)


class Run(ShardRun):
    """Counts in one segment."""

    def __init__(self, context: Context, host: EngineHost, claim: ShardClaim, handle: ClaimHandle) -> None:
        super().__init__(context, claim, handle)

    def all(self) -> None:
        tally = Tally(covered=(1 << self.claim.lines) - 1, good=(1 << self.claim.lines) - 1)

        def write(session: Session) -> None:
            job = shards.commit(session, self.claim, 0, "", 0, tally, last=True)
            ledger.advance_job(session, self.claim.job.id, actor="counter", locked=job)

        self.context.db.retrying(write)
        self.closed = True


def _finish(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    def write(session: Session) -> None:
        ledger.close(session, claim, ledger.sums(session, claim.job.id), [])

    context.db.retrying(write)


def test_new_kind_is_planned_run_and_finished_by_its_two_rows_alone(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    row = Kind(
        "counting",
        "Counting",
        "count_",
        Counting,
        {"succeeded": "counting.counted"},
        window=None,
        ended=lambda _session, job: ended.append(f"{job.id} {job.state}"),
    )
    monkeypatch.setitem(kinds.TABLE, row.name, row)
    monkeypatch.setitem(HANDLERS, row.name, Handler(_plan, {Queue.GENERATE: Run}, _finish))
    with mill.db.write() as session:
        owner = keys.ensure_project(session, "default")
        job = Job(
            id=new_id(row.prefix),
            project_id=owner.id,
            kind=row.name,
            payload={"to": 5},
            **row.times(now()),
        )
        ledger.submit(session, job, actor="test")

    (job,) = mill.drain(job.id)

    assert (job.state, job.completed, job.failed, job.deadline) == (JobState.SUCCEEDED, 5, 0, None)
    assert ended == [f"{job.id} succeeded"]
    told = [kind for _, kind in ledgers.told(mill.db, job.id)]
    assert told == ["job.created", "job.running", "job.finishing", "counting.counted"]
    assert "counting.counted" in kinds.event_types()
