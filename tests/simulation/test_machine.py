"""Hypothesis against the ledger: any call from any process at any moment, also with lost claims.

Every claim ever granted is used again. The effect of a call follows from the epoch in the database: with a newer one
the call is refused and changes nothing; else it counts. In between `invariants` must hold,
and when the faults end every job must come to its end by the next steps that are pending, and by nothing else.

NIGHTMILL_TEST_EXAMPLES sets how many examples are run, and lets a failing one be made as short as possible;
NIGHTMILL_TEST_STEPS sets their length. `make model-tests` runs 200 of 100 steps.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.errors import ClaimLost, Conflict, InvalidRequest
from jobs.ledger import audit, dependencies, ledger, shards, statements
from jobs.ledger.ledger import JobClaim
from jobs.ledger.shards import ShardClaim
from jobs.ledger.states import CLOSING, LIVE, TERMINAL, JobState, ShardState
from jobs.ledger.tables import Job, Outbox, Shard
from jobs.queues import Queue, Task
from jobs.tables import Base
from tests.support import sample_jobs
from tests.support.invariants import History, violations

EXAMPLES = int(os.environ.get("NIGHTMILL_TEST_EXAMPLES", "0"))
STEPS = int(os.environ.get("NIGHTMILL_TEST_STEPS", "40"))

#: No job that waits for one in such a state would ever run.
HOPELESS = {JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED, JobState.CANCELLING, JobState.EXPIRING}

C = TypeVar("C")

sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3)
some = st.integers(0, 1 << 16)


def recent(claims: Sequence[C], pick: int) -> C:
    """Return one of the last five claims, so that former holders act, too."""
    return claims[-1 - pick % min(len(claims), 5)]


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self, db: Database) -> None:
        super().__init__()
        self.db = db
        self.history = History()
        self.sizes: dict[str, list[int]] = {}
        self.job_claims: list[JobClaim] = []
        self.shard_claims: list[ShardClaim] = []
        self.seqs: dict[tuple[str, int, int], int] = {}

    @initialize(lines=sizes, claimed=st.booleans())
    def begin(self, lines: list[int], claimed: bool) -> None:
        """Start with one running job: most games would not come that far."""
        with self.db.write() as session:
            for table in Base.metadata.tables.values():
                session.execute(delete(table))
        job = sample_jobs.running(self.db, lines)
        self.sizes[job.id] = lines
        if claimed:
            self.shard_claims += [sample_jobs.claim_shard(self.db, job.id, n) for n in range(len(lines))]

    # ── submit ──

    @rule(lines=sizes, retry=st.booleans(), pick=some)
    def submit(self, lines: list[int], retry: bool, pick: int) -> None:
        ended = [job_id for job_id in self.sizes if sample_jobs.state(self.db, job_id) in TERMINAL]
        job = sample_jobs.submitted(self.db, retry_of=ended[pick % len(ended)] if retry and ended else None)
        self.sizes[job.id] = lines

    @precondition(lambda self: self.sizes)
    @rule(lines=sizes, picks=st.lists(some, min_size=1, max_size=3))
    def submit_after(self, lines: list[int], picks: list[int]) -> None:
        """Submit a job that waits for others; one that can never complete is refused, and leaves nothing behind."""
        after = [self.job(pick) for pick in picks]
        if {self.row(job_id).state for job_id in after} & HOPELESS:
            with self.unchanged(), pytest.raises(InvalidRequest):
                sample_jobs.submitted(self.db, after=after)
            return
        self.sizes[sample_jobs.submitted(self.db, after=after).id] = lines

    @rule()
    def sweep(self) -> None:
        """Maintenance fails what waits for a job that did not complete."""
        self.fail_dependents()

    @precondition(lambda self: self.sizes)
    @rule(pick=some)
    def release(self, pick: int) -> None:
        """Anyone may try to release a job at any moment: none is left that could be."""
        with self.unchanged(), self.db.write() as session:
            assert not ledger.release_dependent(session, self.job(pick))

    @precondition(lambda self: self.sizes)
    @rule(pick=some)
    def submit_again(self, pick: int) -> None:
        """Submit again after the answer was lost: the second submit is refused as a whole."""
        with self.unchanged(), pytest.raises(IntegrityError), self.db.write() as session:
            ledger.submit(session, sample_jobs.new_job(id=self.job(pick)), actor="key:test")

    # ── planning ──

    @precondition(lambda self: self.sizes)
    @rule(pick=some, task=st.sampled_from([Task.PLAN, Task.FINISH]))
    def claim_job(self, pick: int, task: Task) -> None:
        job_id = self.job(pick)
        before = self.row(job_id)
        with self.db.write() as session:
            claim = ledger.claim(session, job_id, task, f"worker-{len(self.job_claims)}")
        free = before.worker_id is None and before.state in statements.CLAIMABLE[task] and not self.running(job_id)
        free = free and before.waiting_for != dependencies.WAITING
        assert (claim is not None) == free
        if claim is not None:
            self.job_claims.append(claim)

    @precondition(lambda self: self.job_claims)
    @rule(pick=some, count=st.integers(0, 3))
    def cut(self, pick: int, count: int) -> None:
        claim = recent(self.job_claims, pick)
        if claim.job.state != JobState.QUEUED:
            return  # a finisher cuts nothing
        lines = self.sizes[claim.job.id]
        with self.db.read() as session:
            there = set(session.scalars(select(Shard.n).where(Shard.job_id == claim.job.id)))
        rows = [shard for shard in sample_jobs.cuts(claim.job.id, lines) if shard.n not in there][:count]
        self.fenced_unless(
            self.holds(claim, {JobState.QUEUED}), lambda session: shards.cut(session, claim, Queue.GENERATE, rows)
        )

    @precondition(lambda self: self.job_claims)
    @rule(pick=some)
    def uncut(self, pick: int) -> None:
        claim = recent(self.job_claims, pick)
        if claim.job.state == JobState.QUEUED:
            self.fenced_unless(self.holds(claim, {JobState.QUEUED}), lambda session: shards.uncut(session, claim, 10))

    @precondition(lambda self: self.job_claims)
    @rule(pick=some)
    def planned(self, pick: int) -> None:
        """Report a finished plan, which a planner does only when all is cut, and a zombie at any time."""
        claim = recent(self.job_claims, pick)
        lines = self.sizes[claim.job.id]
        mine = self.holds(claim, {JobState.QUEUED})
        if mine:
            self.replan(claim)
        self.fenced_unless(
            mine,
            lambda session: ledger.begin_running(session, claim, total=sum(lines), model="tiny", queue=Queue.GENERATE),
        )

    @precondition(lambda self: self.job_claims)
    @rule(pick=some)
    def reject(self, pick: int) -> None:
        claim = recent(self.job_claims, pick)
        if claim.job.state == JobState.QUEUED and pick % 4 == 0:
            self.fenced_unless(
                self.holds(claim, {JobState.QUEUED}), lambda session: ledger.reject(session, claim, [{"line": 1}])
            )

    # ── running ──

    @precondition(lambda self: self.sizes)
    @rule(pick=some, which=some)
    def claim_shard(self, pick: int, which: int) -> None:
        job_id = self.job(pick)
        n = which % len(self.sizes[job_id])
        with self.db.read() as session:
            shard = session.get(Shard, (job_id, n))
        with self.db.write() as session:
            claim = shards.claim(session, job_id, n, f"worker-{len(self.shard_claims)}")
        free = shard is not None and shard.state == ShardState.PENDING and self.row(job_id).state == JobState.RUNNING
        assert (claim is not None) == free
        if claim is not None:
            self.shard_claims.append(claim)

    @precondition(lambda self: self.shard_claims)
    @rule(pick=some, subset=some, bad=some, twice=st.booleans())
    def commit(self, pick: int, subset: int, bad: int, twice: bool) -> None:
        claim = recent(self.shard_claims, pick)
        mine = self.holds_shard(claim)
        left = self.left(claim) if mine else (1 << claim.lines) - 1
        covered = left & subset or left
        last = covered == left
        key = (claim.job.id, claim.n, claim.epoch)
        seq = self.seqs[key] = self.seqs.get(key, -1) + 1
        lines = [n for n in range(claim.lines) if covered >> n & 1]
        tally = sample_jobs.tally(lines, [n for n in lines if bad >> n & 1])

        def work(session: Session) -> None:
            shards.commit(session, claim, seq, shards.segment_path(*key, seq), 1, tally, last=last)
            if last:
                ledger.advance_job(session, claim.job.id, actor="worker")

        self.fenced_unless(mine, work)
        if mine and twice:
            with self.unchanged(), self.db.write() as session:
                work(session)  # the answer to the first was lost

    @precondition(lambda self: self.shard_claims)
    @rule(pick=some, line=some)
    def try_a_line(self, pick: int, line: int) -> None:
        claim = recent(self.shard_claims, pick)
        mine = self.holds_shard(claim)
        self.fenced_unless(mine, lambda session: shards.record_isolated_attempt(session, claim, line % claim.lines))

    @precondition(lambda self: self.shard_claims)
    @rule(pick=some)
    def release_shard(self, pick: int) -> None:
        claim = recent(self.shard_claims, pick)
        mine = self.holds_shard(claim)
        with self.db.read() as session:
            before = sample_jobs.everything(session)
        with self.db.write() as session:
            shards.release(session, claim)
        with self.db.read() as session:
            assert (sample_jobs.everything(session) != before) == mine

    @precondition(lambda self: self.shard_claims or self.job_claims)
    @rule()
    def heartbeat(self) -> None:
        held = [(claim.job.id, claim.n, claim.epoch) for claim in self.shard_claims]
        with self.db.write() as session:
            lost = set(shards.heartbeat(session, held))
            held = [ledger.heartbeat(session, claim.job.id, claim.epoch, claim.worker_id) for claim in self.job_claims]
        assert lost == {
            (claim.job.id, claim.n, claim.epoch) for claim in self.shard_claims if not self.holds_shard(claim)
        }
        assert held == [self.holds(claim, LIVE) for claim in self.job_claims]

    # ── leases ──

    @rule(pick=some, stale=st.booleans())
    def lose_a_shard(self, pick: int, stale: bool) -> None:
        with self.db.read() as session:
            held = shards.running(session)
        if held:
            job_id, n, epoch, heartbeat, _ = held[pick % len(held)]
            with self.db.write() as session:
                assert shards.revoke_lease(session, job_id, n, epoch, heartbeat - stale) != stale

    @rule(pick=some)
    def lose_a_shard_to_an_heir(self, pick: int) -> None:
        with self.db.read() as session:
            held = [one for one in shards.running(session) if self.row(one[0]).state == JobState.RUNNING]
        if held:
            job_id, n, epoch, heartbeat, _ = held[pick % len(held)]
            with self.db.write() as session:
                shards.revoke_lease(session, job_id, n, epoch, heartbeat)
            self.shard_claims.append(sample_jobs.claim_shard(self.db, job_id, n, f"worker-{len(self.shard_claims)}"))

    @rule(pick=some)
    def lose_a_job_to_an_heir(self, pick: int) -> None:
        with self.db.read() as session:
            held = ledger.current_claims(session)
        if held:
            job_id, epoch, heartbeat, _ = held[pick % len(held)]
            task = Task.PLAN if self.row(job_id).state == JobState.QUEUED else Task.FINISH
            with self.db.write() as session:
                ledger.revoke_lease(session, job_id, epoch, heartbeat)
            self.job_claims.append(sample_jobs.claim_job(self.db, job_id, task, f"worker-{len(self.job_claims)}"))

    @rule(pick=some, stale=st.booleans())
    def lose_a_job(self, pick: int, stale: bool) -> None:
        with self.db.read() as session:
            held = ledger.current_claims(session)
        if held:
            job_id, epoch, heartbeat, _ = held[pick % len(held)]
            with self.db.write() as session:
                assert ledger.revoke_lease(session, job_id, epoch, heartbeat - stale) != stale

    @precondition(lambda self: self.job_claims)
    @rule(pick=some)
    def release_job(self, pick: int) -> None:
        claim = recent(self.job_claims, pick)
        mine = self.holds(claim, LIVE)
        with self.db.write() as session:
            assert ledger.release(session, claim.job.id, claim.epoch) == mine

    # ── stopping and ending ──

    @precondition(lambda self: self.sizes)
    @rule(pick=some)
    def cancel(self, pick: int) -> None:
        job_id = self.job(pick)
        before = JobState(self.row(job_id).state)
        refused = before not in {JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING, JobState.CANCELLED}
        try:
            with self.db.write() as session:
                ledger.cancel(session, job_id, actor="key:test")
        except Conflict:
            assert refused
        else:
            assert not refused

    @precondition(lambda self: self.sizes)
    @rule(pick=some, late=st.booleans())
    def expire(self, pick: int, late: bool) -> None:
        job_id = self.job(pick)
        before = self.row(job_id).state
        if late and before in LIVE:
            with self.db.write() as session:
                session.execute(update(Job).where(Job.id == job_id).values(deadline=1.0))
        passed = self.row(job_id).deadline == 1.0
        with self.db.write() as session:
            expired = ledger.expire(session, job_id, actor="dispatcher")
        assert (expired is not None) == (passed and before in {JobState.QUEUED, JobState.RUNNING})

    @precondition(lambda self: self.sizes)
    @rule(pick=some)
    def fence(self, pick: int) -> None:
        job_id = self.job(pick)
        if self.row(job_id).state in {JobState.CANCELLING, JobState.EXPIRING}:
            with self.db.write() as session:
                shards.revoke_running(session, job_id)
            assert not self.running(job_id)

    @precondition(lambda self: self.job_claims)
    @rule(pick=some)
    def close(self, pick: int) -> None:
        claim = recent(self.job_claims, pick)
        if claim.job.state in CLOSING:
            self.fenced_unless(self.holds(claim, set(CLOSING)), lambda session: self.end(session, claim))

    # ── what holds after every step ──

    @invariant()
    def everything_is_as_it_must_be(self) -> None:
        with self.db.read() as session:
            assert violations(session) == []
            assert self.history.look(session) == []
            assert ledger.jobs_lacking_next_step(session) == []
            assert dependencies.releasable(session, 10) == []
        with self.db.write() as session:
            assert shards.restore_messages(session) == 0

    def teardown(self) -> None:
        """End all faults: claims are lost, and the pending messages must lead every job to its end."""
        for _ in range(400):  # a chain of jobs takes a few for each
            self.lose_everything()
            if not (self.handle_everything() or self.fail_dependents()):
                break
        with self.db.write() as session:
            left = session.scalars(select(Job.id).where(Job.state.in_(LIVE))).all()
            assert left == []
            assert violations(session) == []
            while audit.seal(session):
                session.flush()
            assert audit.verify(session).faults == ()

    def fail_dependents(self) -> bool:
        with self.db.write() as session:
            failing = dependencies.failing(session, 100)
            for job_id in failing:
                job = ledger.lock(session, job_id)
                assert job is not None
                error = ledger.dependency_error(session, job)
                assert error is not None
                ledger.fail_dependent(session, job, error, actor="dispatcher")
        return bool(failing)

    def lose_everything(self) -> None:
        with self.db.write() as session:
            for job_id, n, epoch, heartbeat, _ in shards.running(session):
                assert shards.revoke_lease(session, job_id, n, epoch, heartbeat)
            for job_id, epoch, heartbeat, _ in ledger.current_claims(session):
                assert ledger.revoke_lease(session, job_id, epoch, heartbeat)

    def handle_everything(self) -> bool:
        with self.db.read() as session:
            messages = session.execute(select(Outbox.task, Outbox.job_id, Outbox.shard_n)).all()
        for task, job_id, n in messages:
            if task == Task.RUN:
                self.run_shard(job_id, n)
            else:
                self.run_job(Task(task), job_id)
        return bool(messages)

    def run_shard(self, job_id: str, n: int) -> None:
        with self.db.write() as session:
            claim = shards.claim(session, job_id, n, "heir")
        if claim is None:
            return
        left = [line for line in range(claim.lines) if not claim.covered >> line & 1]
        assert left  # whoever covers the last line ends the shard with it
        sample_jobs.answer(self.db, claim, left, last=True)

    def run_job(self, task: Task, job_id: str) -> None:
        with self.db.write() as session:
            claim = ledger.claim(session, job_id, task, "heir")
        if claim is None:
            return
        if task == Task.FINISH:
            with self.db.write() as session:
                self.end(session, claim)
            return
        self.replan(claim)
        total = sum(self.sizes[job_id])
        with self.db.write() as session:
            ledger.begin_running(session, claim, total=total, model="tiny", queue=Queue.GENERATE)

    # ── what is what ──

    def replan(self, claim: JobClaim) -> None:
        with self.db.write() as session:
            while shards.uncut(session, claim, 2):
                session.expire_all()
            shards.cut(session, claim, Queue.GENERATE, sample_jobs.cuts(claim.job.id, self.sizes[claim.job.id]))

    def end(self, session: Session, claim: JobClaim) -> None:
        counts = ledger.sums(session, claim.job.id)
        if claim.job.state == JobState.FINISHING:
            assert counts["completed"] + counts["failed"] == sum(self.sizes[claim.job.id])
        ledger.close(session, claim, counts, [])

    def job(self, pick: int) -> str:
        return list(self.sizes)[pick % len(self.sizes)]

    def row(self, job_id: str) -> Job:
        return sample_jobs.job(self.db, job_id)

    def running(self, job_id: str) -> bool:
        with self.db.read() as session:
            return any(held == job_id for held, *_ in shards.running(session))

    def holds(self, claim: JobClaim, states: Any) -> bool:
        row = self.row(claim.job.id)
        return row.epoch == claim.epoch and row.worker_id == claim.worker_id and row.state in states

    def holds_shard(self, claim: ShardClaim) -> bool:
        with self.db.read() as session:
            row = session.get(Shard, (claim.job.id, claim.n))
        return row is not None and (row.epoch, row.state) == (claim.epoch, ShardState.RUNNING)

    def left(self, claim: ShardClaim) -> int:
        with self.db.read() as session:
            return ((1 << claim.lines) - 1) & ~shards.covered_lines(session, claim.job.id, claim.n)

    def fenced_unless(self, mine: bool, work: Callable[[Session], object]) -> None:
        if mine:
            with self.db.write() as session:
                work(session)
            return
        with self.unchanged(), pytest.raises(ClaimLost), self.db.write() as session:
            work(session)

    def unchanged(self) -> "_Unchanged":
        return _Unchanged(self.db)


class _Unchanged:
    """Check that the block leaves every row as it was."""

    def __init__(self, db: Database) -> None:
        self.db = db

    def __enter__(self) -> None:
        with self.db.read() as session:
            self.before = sample_jobs.everything(session)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            with self.db.read() as session:
                assert sample_jobs.everything(session) == self.before


@pytest.mark.timeout(0)
@pytest.mark.parametrize("examples", [3, pytest.param(20, marks=pytest.mark.soak)])
def test_no_order_of_calls_loses_or_repeats_anything(sqlite: Database, examples: int) -> None:
    run_state_machine_as_test(
        lambda: LedgerMachine(sqlite),
        settings=settings(
            max_examples=EXAMPLES or examples,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=bool(os.environ.get("CI")),
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            phases=[phase for phase in Phase if phase is not Phase.shrink or "NIGHTMILL_TEST_EXAMPLES" in os.environ],
        ),
    )
