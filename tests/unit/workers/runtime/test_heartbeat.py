"""The heartbeats of what a process holds, and what is to stop."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.fleet import quarantine, workers
from jobs.fleet.health import sign_file
from jobs.fleet.tables import EngineDeath, Worker
from jobs.ledger import ledger, pauses, shards
from jobs.ledger.pauses import Scope
from jobs.platform import processes
from jobs.queues import Queue, Task
from jobs.timings import Timings
from tests.support import sample_jobs
from tests.support.system import eventually
from workers.runtime.heartbeat import Heartbeat

QUICK = replace(Timings(), heartbeat_look=0.02)

ROOT = Path(__file__).parents[4]
BREAKS_AT_ITS_FIRST_BEAT = """
import sys, threading
from jobs.db.engine import Database
from tests.unit.workers.runtime.test_heartbeat import _worker
from workers.runtime.heartbeat import Heartbeat

known = [_worker(), _worker()]
Heartbeat(Database(sys.argv[1]), lambda: known.pop(), heartbeat_seconds=0.05, stop=threading.Event()).start()
threading.Event().wait(30)
"""


class Fickle(Database):
    """A database that refuses some writes, by their number, or all while it is told to."""

    def __init__(self, url: str, *numbers: int) -> None:
        super().__init__(url, patience=10)
        self.refuses = False
        self._numbers = numbers
        self._writes = 0

    @contextmanager
    def write(self) -> Iterator[Session]:
        self._writes += 1
        if self.refuses or self._writes in self._numbers:
            raise DatabaseBusy
        with super().write() as session:
            yield session


def _worker() -> Worker:
    host, pid, started = processes.me()
    facts = {"pool": "gpu", "host": host, "pid": pid, "started": started, "queues": [Queue.GENERATE], "models": []}
    return Worker(id="w", slots=1, state="ready", restarts=0, created_at=now(), seen_at=now(), **facts)


@pytest.fixture
def heartbeat(db: Database) -> Iterator[Heartbeat]:
    heartbeat = Heartbeat(db, _worker, heartbeat_seconds=0.05, stop=threading.Event())
    heartbeat.start()
    yield heartbeat
    heartbeat.leave()
    heartbeat.join()


def test_only_watched_claims_get_heartbeats(db: Database, heartbeat: Heartbeat) -> None:
    job = sample_jobs.running(db, [1, 1])
    held, idle = (sample_jobs.claim_shard(db, job.id, n, "w") for n in range(2))

    with heartbeat.watching(job.id, held.epoch, held.n) as handle:
        eventually(lambda: sample_jobs.shard(db, job.id, 0).heartbeat >= 2, 10, "it sends a heartbeat")

    assert sample_jobs.shard(db, job.id, 1).heartbeat == 0
    assert not handle.ended
    assert idle.n == 1


@pytest.mark.usefixtures("heartbeat")
def test_each_heartbeat_that_the_database_took_gives_a_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    eventually(sign_file("gpu").exists, 30, "the worker has given a sign")


def test_a_paused_worker_stops_listening_until_it_is_resumed(db: Database, heartbeat: Heartbeat) -> None:
    told: list[bool] = []
    heard = threading.Event()

    def listen(wanted: bool) -> bool:
        told.append(wanted)
        heard.set()
        return len(told) > 1  # the broker is away the first time

    heartbeat.listen = listen
    with db.write() as session:
        pauses.pause(session, pauses.Scope.WORKER, "w", actor="operator")
    while len(told) < 2:
        assert heard.wait(30)
        heard.clear()
    with db.write() as session:
        pauses.resume(session, pauses.Scope.WORKER, "w", actor="operator")

    assert heard.wait(30)
    assert told == [False, False, True]


def test_each_heartbeat_reports_work_without_a_claim(db: Database, heartbeat: Heartbeat) -> None:
    """Pass where each wait ends."""

    def told() -> list[Any] | None:
        with db.read() as session:
            return session.get_one(Worker, "w").other_work

    ends = [heartbeat.under_way.begin("gpu.generate", "m", "blue") for _ in range(2)]
    eventually(lambda: told() == [["gpu.generate", "m", "blue", 2]], 5, "both are told")
    for end in ends:
        end()

    eventually(lambda: told() == [], 5, "they have ended")


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.first(2)
def test_pause_is_noticed_soon_and_acknowledged_by_heartbeats(db: Database, scope: Scope) -> None:
    heartbeat = Heartbeat(db, _worker, heartbeat_seconds=60, stop=threading.Event())
    heartbeat.start()
    try:
        with db.write() as session:
            pauses.pause(session, scope, "w", actor="operator")
        acknowledgement = workers.Acknowledgement()

        def heard() -> bool:
            with db.read() as session:
                return not acknowledgement.pending_workers(workers.heartbeats(session, Scope.WORKER, {"w"}))

        eventually(heard, 30, "three heartbeats were sent")
        # of jobs it is known that some are paused, not which
        assert (heartbeat.off.of(scope), heartbeat.off.some_jobs) == (
            (set(), True) if scope is Scope.JOB else ({"w"}, False)
        )
    finally:
        heartbeat.leave()


def test_existing_pause_is_known_at_start(db: Database) -> None:
    with db.write() as session:
        pauses.pause(session, Scope.MODEL, "m", actor="operator")
    heartbeat = Heartbeat(db, _worker, heartbeat_seconds=60, stop=threading.Event())

    heartbeat.start()

    assert heartbeat.off.of(Scope.MODEL) == {"m"}
    heartbeat.leave()


def test_revoked_claim_is_reported_lost(db: Database, heartbeat: Heartbeat) -> None:
    job = sample_jobs.running(db)
    claim = sample_jobs.claim_shard(db, job.id, 0, "w")

    with heartbeat.watching(job.id, claim.epoch, 0) as handle:
        with db.write() as session:
            shards.revoke_running(session, job.id)
        assert handle.lost.wait(30)


def test_cancelled_job_stops_its_shards(db: Database, heartbeat: Heartbeat) -> None:
    job = sample_jobs.running(db)
    claim = sample_jobs.claim_shard(db, job.id, 0, "w")

    with heartbeat.watching(job.id, claim.epoch, 0) as handle:
        with db.write() as session:
            ledger.cancel(session, job.id, actor="key:test")
        assert handle.stop.wait(30)

    assert not handle.lost.is_set()


def test_claim_of_superseded_planner_is_reported_lost(db: Database, heartbeat: Heartbeat) -> None:
    claim = sample_jobs.planning(db)
    with db.write() as session:
        ledger.release(session, claim.job.id, claim.epoch)
    mine = sample_jobs.claim_job(db, claim.job.id, Task.PLAN, "w")

    with heartbeat.watching(claim.job.id, claim.epoch) as old, heartbeat.watching(mine.job.id, mine.epoch) as new:
        assert old.lost.wait(30)

    assert not new.ended


def test_cancelled_job_stops_its_shards_between_two_heartbeat(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = sample_jobs.running(db)
    claim = sample_jobs.claim_shard(db, job.id, 0, "w")
    rare = Heartbeat(db, _worker, heartbeat_seconds=3600, stop=threading.Event(), timings=QUICK)
    rare.start()

    with rare.watching(job.id, claim.epoch, 0) as handle:
        while sample_jobs.shard(db, job.id).heartbeat == 0:
            assert not handle.changed.wait(0.02)  # the first heartbeat comes at once
        with db.write() as session:
            ledger.cancel(session, job.id, actor="key:test")
        assert handle.stop.wait(30)

    assert sample_jobs.shard(db, job.id).heartbeat == 1
    rare.leave()


def test_heartbeat_that_the_database_refused_is_made_up_for_at_the_next_look(
    db: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fickle, job = Fickle(db.url, 2), sample_jobs.running(db)  # the first write makes the worker known
    claim = sample_jobs.claim_shard(db, job.id, 0, "w")
    heartbeat = Heartbeat(fickle, _worker, heartbeat_seconds=3600, stop=threading.Event(), timings=QUICK)

    with heartbeat.watching(job.id, claim.epoch, 0) as handle:
        heartbeat.start()
        for _ in range(250):
            if sample_jobs.shard(db, job.id).heartbeat or handle.changed.wait(0.02):
                break

    assert "heartbeat_missed" in caplog.messages
    assert (sample_jobs.shard(db, job.id).heartbeat, handle.ended) == (1, False)
    heartbeat.leave()
    fickle.close()


def test_worker_that_leaves_while_the_database_refuses_leaves_its_row_to_the_dispatcher(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    fickle = Fickle(db.url)
    heartbeat = Heartbeat(fickle, _worker, heartbeat_seconds=0.05, stop=threading.Event())
    heartbeat.start()

    fickle.refuses = True
    heartbeat.leave()

    assert "worker_row_left_behind" in caplog.messages
    with db.read() as session:
        assert [worker.id for worker in workers.alive(session)] == ["w"]
    fickle.close()


def test_process_exits_for_restart_after_heartbeat_thread_dies(sqlite: Database) -> None:
    script = [sys.executable, "-c", BREAKS_AT_ITS_FIRST_BEAT, sqlite.url]

    ended = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 70
    assert "heartbeat_died" in ended.stderr
    assert "pop from empty list" in ended.stderr


def test_deregistered_worker_registers_on_next_announcement(db: Database, heartbeat: Heartbeat) -> None:
    with db.write() as session:
        workers.leave(session, "w")

    heartbeat.announce()

    with db.read() as session:
        assert [worker.id for worker in workers.alive(session)] == ["w"]


HELD = {"tiny": {"entry": "e", "up": True}}


def _blamed(db: Database) -> int:
    """As by a dispatcher that takes it for dead.

    How many deaths that is, before its next heartbeat may say otherwise.
    """
    with db.write() as session:
        row = session.get_one(Worker, "w")
        row.host_devices, row.engines = "here", HELD
        quarantine.handle_worker_death(session, row, {}, quarantine.QuarantineLimits(2, 60.0, 60.0))
        workers.leave(session, "w")
        return len(session.scalars(select(EngineDeath)).all())


def _deaths(db: Database) -> int:
    with db.read() as session:
        return len(session.scalars(select(EngineDeath)).all())


def test_a_worker_that_was_taken_for_dead_says_that_its_engines_live(db: Database, heartbeat: Heartbeat) -> None:
    before = _blamed(db)

    heartbeat.announce()

    assert (before, _deaths(db)) == (1, 0)


def test_stopping_worker_reports_no_engines(db: Database) -> None:
    def worker() -> Worker:
        one = _worker()
        one.host_devices, one.engines = "here", HELD
        return one

    heartbeat = Heartbeat(db, worker, heartbeat_seconds=0.05, stop=threading.Event())
    heartbeat.start()
    with db.read() as session:
        before = session.get_one(Worker, "w").engines

    heartbeat.stop_all()
    heartbeat.join()

    with db.read() as session:
        after = session.get_one(Worker, "w").engines
    heartbeat.leave()
    assert (before, after) == (HELD, {})


def test_leaving_worker_releases_the_trial_of_its_engine(db: Database, heartbeat: Heartbeat) -> None:
    bounds = quarantine.QuarantineLimits(2, 60.0, 60.0)
    with db.write() as session:
        sample_jobs.quarantined(session, "tiny", host_devices="here")
        quarantine.all_quarantines(session)[0].until = 0.0
    with db.write() as session:
        assert quarantine.begin_trial(session, "here", "tiny", "w", bounds)

    heartbeat.leave()

    with db.write() as session:
        assert quarantine.begin_trial(session, "here", "tiny", "next", bounds)


def test_leave_ends_claims_and_removes_worker_row(db: Database, heartbeat: Heartbeat) -> None:
    with heartbeat.watching("job", 1, 0) as handle:
        heartbeat.leave()

    assert handle.stop.is_set()
    with heartbeat.watching("job", 2, 0) as late:
        assert late.ended, "nothing new is begun"
    with db.read() as session:
        assert workers.alive(session) == []
