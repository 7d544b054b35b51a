"""Real threads on real databases: whatever they do at once, there is no deadlock."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.errors import ClaimLost, Conflict
from jobs.ledger import ledger, outbox, shards
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Outbox
from jobs.queues import Queue, Task
from tests.support import sample_jobs
from tests.support.invariants import violations

pytestmark = pytest.mark.verify

_THREADS = 6
_SECONDS = 3.0


class Crowd:
    """Everybody who writes into the ledger, picking at random what to do. A deadlock would be a DatabaseBusy."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.jobs = [sample_jobs.running(db, [2] * 6).id for _ in range(3)]
        self.until = time.monotonic() + _SECONDS
        self.acts = 0

    def member(self, seed: int) -> None:
        dice = random.Random(seed)
        while time.monotonic() < self.until:
            act = dice.choice(
                [self.run, self.run, self.lose, self.fence, self.cancel, self.publish, self.close, self.sweep]
            )
            try:
                act(dice, self.jobs[dice.randrange(len(self.jobs))])
            except (ClaimLost, Conflict):
                continue
            self.acts += 1

    def run(self, dice: random.Random, job_id: str) -> None:
        with self.db.write() as session:
            claim = shards.claim(session, job_id, dice.randrange(6), "worker")
        if claim is None:
            return
        with self.db.write() as session:
            shards.heartbeat(session, [(job_id, n, claim.epoch) for n in range(6)])
        if dice.random() < 0.3:
            with self.db.write() as session:
                shards.release(session, claim, waiting_for="model")
            return
        left = [line for line in range(2) if not claim.covered >> line & 1]
        sample_jobs.answer(self.db, claim, left, last=True)

    def lose(self, dice: random.Random, job_id: str) -> None:
        with self.db.write() as session:
            for held, n, epoch, heartbeat, _ in shards.running(session):
                shards.revoke_lease(session, held, n, epoch, heartbeat)

    def fence(self, dice: random.Random, job_id: str) -> None:
        with self.db.write() as session:
            if session.get_one(Job, job_id).state in {JobState.CANCELLING, JobState.EXPIRING}:
                shards.revoke_running(session, job_id)

    def cancel(self, dice: random.Random, job_id: str) -> None:
        if dice.random() < 0.05:
            with self.db.write() as session:
                ledger.cancel(session, job_id, actor="key:test")

    def publish(self, dice: random.Random, job_id: str) -> None:
        with self.db.write() as session:
            outbox.mark_published(session, session.scalars(select(Outbox.id)).all())

    def close(self, dice: random.Random, job_id: str) -> None:
        with self.db.write() as session:
            claim = ledger.claim(session, job_id, Task.FINISH, "finisher")
        if claim is None:
            return
        with self.db.write() as session:
            ledger.close(session, claim, ledger.sums(session, job_id), [])
        self.jobs[self.jobs.index(job_id)] = sample_jobs.running(self.db, [2] * 6).id

    def sweep(self, dice: random.Random, job_id: str) -> None:
        with self.db.write() as session:
            self._mend(session)

    def _mend(self, session: Session) -> None:
        for lost in ledger.jobs_lacking_next_step(session):
            ledger.advance_job(session, lost, actor="dispatcher")
        shards.restore_messages(session)


def test_a_crowd_of_threads_does_not_block_itself(db: Database) -> None:
    crowd = Crowd(db)
    threads_before = threading.active_count()

    with ThreadPoolExecutor(_THREADS) as pool:
        for member in [pool.submit(crowd.member, seed) for seed in range(_THREADS)]:
            member.result()

    assert crowd.acts > 50
    assert threading.active_count() <= threads_before + 1
    with db.read() as session:
        assert violations(session) == []
        assert set(outbox.depth(session)) <= {Queue.PLAN, Queue.GENERATE}
