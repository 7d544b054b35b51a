"""The delivery loop against real receivers, on SQLite and PostgreSQL; faults F15 and F16 in short."""

import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.fleet.tables import Worker
from jobs.ledger import events, pauses
from jobs.ledger.pauses import Scope
from jobs.ledger.tables import Job
from jobs.platform import processes
from jobs.platform.storage import DiskStorage
from jobs.queues import Queue
from jobs.settings import Settings
from jobs.timings import Timings
from jobs.webhooks import claims, replays, webhook_endpoints
from jobs.webhooks.claims import claim_due
from jobs.webhooks.sending import new_secret
from jobs.webhooks.tables import Attempt, Delivery, WebhookEndpoint
from tests.support.background_thread import beside
from tests.support.databases import KINDS, fresh
from tests.support.receiver import Receiver
from tests.support.system import GRACE_SECONDS, pause
from workers.dispatcher.maintenance import Maintenance
from workers.webhooks import loop
from workers.webhooks.loop import AHEAD

SECRET = new_secret()
#: The default schedule, a thousand times faster, without its last days.
SCHEDULE = (0, 0.005, 0.03, 0.12, 0.6, 1.8)


@pytest.fixture(params=KINDS)
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with fresh(request.param, tmp_path) as database:
        yield database


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        yield server


def config(**changes: object) -> Settings:
    values: dict[str, object] = {
        "webhook_allow_private": True,
        "webhook_retry_seconds": SCHEDULE,
        "webhook_timeout_seconds": 2,
    }
    return Settings(**{**values, **changes})  # type: ignore[arg-type]


def endpoint(db: Database, url: str, name: str = "we_1", secret: str = SECRET) -> None:
    with db.write() as session:
        session.add(
            WebhookEndpoint(
                id=name,
                project_id="proj_1",
                name=name,
                url=url,
                event_types=["batch.completed"],
                secret=secret,
                created_at=now(),
            )
        )


def happen(db: Database, count: int = 1, of: Job | None = None, start: int = 0) -> None:
    """`batch.completed` of jobs `start`, `start` + 1, …: each event is enqueued for every endpoint."""
    with db.write() as session:
        for n in range(start, start + count):
            event = events.record(
                session,
                subject_id=f"batch_{n}",
                seq=1,
                project_id="proj_1",
                type="batch.completed",
                data={"id": f"batch_{n}"},
            )
            session.flush()
            events.fan_out(session, event, of)


@contextmanager
def delivering(
    db: Database, settings: Settings | None = None, worker: str = "io-1", **seconds: float
) -> Iterator[None]:
    """Run the delivery loop in a thread until the block ends."""
    with beside(
        lambda stop: loop.run(
            db, settings or config(), worker, stop, replace(Timings(), deliveries_idle=60.0, **seconds)
        )
    ):
        yield


def eventually(holds: Callable[[], bool], seconds: float = GRACE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        pause.wait(0.02)


def states(db: Database) -> Counter[str]:
    with db.read() as session:
        return Counter(dict(session.execute(select(Delivery.state, func.count()).group_by(Delivery.state)).all()))  # type: ignore[arg-type]


def free(session: Session) -> bool:
    """Whether nobody holds a delivery."""
    return session.scalar(select(func.count()).where(Delivery.worker_id.is_not(None))) == 0


def test_event_arrives_once_signed_and_is_logged(db: Database, receiver: Receiver) -> None:
    endpoint(db, receiver.url("ok"))
    with delivering(db):
        happen(db)
        eventually(lambda: states(db)["delivered"] == 1)

    (request,) = receiver.requests
    assert request.verify(SECRET)["data"] == {"id": "batch_0"}
    with db.read() as session:
        (log,) = session.scalars(select(Attempt))
        assert (log.delivery_id, log.status_code) == (request.webhook_id, 200)


def test_job_webhook_is_signed_with_its_own_secret(db: Database, receiver: Receiver) -> None:
    own = new_secret()
    job = Job(
        id="batch_0",
        project_id="proj_1",
        kind="generation",
        payload={},
        deadline=now() + 60,
        created_at=now(),
        webhook_url=receiver.url("ok/own"),
        webhook_secret=own,
    )
    with db.write() as session:
        session.add(job)
    happen(db, of=job)

    with delivering(db):
        eventually(lambda: states(db)["delivered"] == 1)

    (request,) = receiver.of("ok/own")
    assert request.verify(own)["type"] == "batch.completed"


def test_delivery_fails_after_all_attempts_with_same_id(db: Database, receiver: Receiver) -> None:
    endpoint(db, receiver.url("500"))
    happen(db)

    with delivering(db):
        eventually(lambda: states(db)["failed"] == 1)

    assert len(receiver.requests) == len(SCHEDULE)
    assert len({request.webhook_id for request in receiver.requests}) == 1


def test_replayed_delivery_is_resent_with_same_id(db: Database, receiver: Receiver) -> None:
    endpoint(db, receiver.url("ok"))
    happen(db)
    with delivering(db):
        eventually(lambda: states(db)["delivered"] == 1)
        with db.write() as session:
            ids = (receiver.requests[0].webhook_id,)
            replays.replay(session, "proj_1", "we_1", replays.Selection(ids=ids))
        eventually(lambda: len(receiver.requests) == 2)

    first, second = receiver.requests
    assert (first.webhook_id, first.body) == (second.webhook_id, second.body)


def test_pending_deliveries_are_sent_after_endpoint_is_reenabled(db: Database, receiver: Receiver) -> None:
    endpoint(db, receiver.url("410"))
    happen(db, 30)
    with delivering(db):
        eventually(lambda: _disabled(db))
        sent = len(receiver.requests)
        with db.write() as session:
            row = session.get_one(WebhookEndpoint, "we_1")
            row.url = receiver.url("ok")
            webhook_endpoints.enable(session, row, actor="key:1")
        eventually(lambda: states(db)["delivered"] == 30)

    assert sent < 30, "what waited was not sent to a receiver that is gone"


def _disabled(db: Database) -> bool:
    with db.read() as session:
        return session.get_one(WebhookEndpoint, "we_1").disabled_reason == "gone"


def test_idle_loop_returns(db: Database) -> None:
    began = time.monotonic()
    loop.run(db, config(), "io-1", threading.Event(), replace(Timings(), deliveries_idle=0.5))

    assert time.monotonic() - began > 0.4


def test_second_run_of_the_same_worker_returns_at_once(db: Database) -> None:
    with delivering(db, worker="io-1"):
        eventually(lambda: "io-1" in loop._running)
        loop.run(db, config(), "io-1", threading.Event(), replace(Timings(), deliveries_idle=3600.0))

    assert "io-1" not in loop._running


def test_stopped_loop_ends_promptly_and_releases_its_claims(db: Database, receiver: Receiver) -> None:
    endpoint(db, receiver.url("hang"))
    happen(db, 10)
    with delivering(db, config(webhook_timeout_seconds=3600)):
        eventually(lambda: len(receiver.requests) == 2)

    with db.read() as session:
        assert free(session)
    assert states(db) == {"pending": 10}


@pytest.mark.parametrize(("scope", "name"), [(Scope.QUEUE, Queue.WEBHOOKS.value), (Scope.WORKER, "io-1")])
def test_paused_loop_finishes_started_deliveries_and_releases_rest(
    db: Database, receiver: Receiver, scope: Scope, name: str
) -> None:
    endpoint(db, receiver.url("slow"))
    happen(db, 60)

    def set_(change: Callable[..., bool]) -> None:
        with db.write() as session:
            assert change(session, scope, name, actor="operator")

    def held() -> bool:
        with db.read() as session:
            return not free(session)

    def tried() -> int:
        with db.read() as session:
            return session.scalar(select(func.count()).select_from(Attempt)) or 0

    with delivering(db):
        eventually(lambda: len(receiver.requests) == 2)
        set_(pauses.pause)
        eventually(lambda: not held())
        sent = len(receiver.requests)
        happen(db, 5, start=60)
        threading.Event().wait(0.5)
        meanwhile, tries = len(receiver.requests), tried()
        set_(pauses.resume)
        eventually(lambda: len({request.webhook_id for request in receiver.requests}) == 65, 60)

    assert sent < 60, "what was claimed and not begun was given back"
    assert (meanwhile, tries) == (sent, sent), "nothing was sent, and no attempt was used up"


def test_claims_that_an_earlier_run_left_are_taken_back(db: Database, receiver: Receiver) -> None:
    endpoint(db, receiver.url("ok"))
    happen(db, 2)
    with db.write() as session:
        assert len(claim_due(session, "io-1")) == 2

    with delivering(db, worker="io-1"):
        eventually(lambda: states(db)["delivered"] == 2)


def test_deliveries_of_missing_worker_are_freed_and_of_live_worker_stay(db: Database, tmp_path: Path) -> None:
    endpoint(db, "http://127.0.0.1:9/")
    happen(db, 4)
    host, pid, started = processes.me()
    with db.write() as session:
        row = {"host": host, "pid": pid, "started": started, "queues": [], "models": [], "slots": 1}
        session.add(Worker(id="io-here", pool="io", created_at=now(), seen_at=now(), **row))
        assert len(claim_due(session, "io-left")) == len(claim_due(session, "io-here")) == 2
    times = itertools.count(0.0, 10.0)  # each look at the clock is ten seconds later
    maintenance = Maintenance(
        config(lease_seconds=10_000), db, DiskStorage(tmp_path), lambda: next(times), lambda: None
    )

    maintenance.run()

    with db.read() as session:
        held = session.scalars(select(Delivery.worker_id).where(Delivery.worker_id.is_not(None))).all()
    assert held == ["io-here", "io-here"]


class Flaky(Database):
    """Loses every third answer to a commit, and refuses every fifth transaction."""

    writes = 0

    @contextmanager
    def write(self) -> Iterator[Session]:
        self.writes += 1
        if self.writes % 5 == 0:
            raise DatabaseBusy
        with super().write() as session:
            yield session
        if self.writes % 3 == 0:
            raise DatabaseBusy


class Full(Database):
    """Refuses at once, as a full disk does."""

    refused = 0

    def write(self) -> NoReturn:
        self.refused += 1
        raise DatabaseBusy


def test_refusing_database_is_retried_with_delay(sqlite: Database) -> None:
    endpoint(sqlite, "http://127.0.0.1:9/ok")
    happen(sqlite, 1)
    full = Full(sqlite.url)

    with delivering(full):
        eventually(lambda: full.refused)
        threading.Event().wait(1.0)
    full.close()

    assert full.refused <= 4


@pytest.mark.verify
def test_database_that_refuses_and_loses_answers_costs_no_delivery(db: Database, receiver: Receiver) -> None:
    endpoint(db, receiver.url("ok"))
    happen(db, 100)
    flaky = Flaky(db.url, patience=10)

    with delivering(flaky):
        eventually(lambda: states(db)["delivered"] == 100)
    flaky.close()

    with db.read() as session:
        assert free(session)
        assert session.scalar(select(func.count()).select_from(Attempt)) == 100
    assert {request.webhook_id for request in receiver.requests} == {
        request.webhook_id for request in receiver.requests if request.verify(SECRET)
    }


class Mute(Database):
    """Commits the first transaction, and says a second later that it may not have."""

    writes = 0

    @contextmanager
    def write(self) -> Iterator[Session]:
        self.writes += 1
        first = self.writes == 1
        with super().write() as session:
            yield session
        if first:
            pause(1.0)
            raise DatabaseBusy


def test_delivery_with_lost_claim_answer_is_sent_before_loop_ends(db: Database, receiver: Receiver) -> None:
    endpoint(db, receiver.url("ok"))
    happen(db)
    mute = Mute(db.url, patience=10)

    loop.run(mute, config(), "io-1", threading.Event(), replace(Timings(), deliveries_idle=0.5))
    mute.close()

    assert states(db) == {"delivered": 1}
    assert len(receiver.requests) == 1


class Shut(Database):
    """Takes no writes once it is shut."""

    shut = False

    @contextmanager
    def write(self) -> Iterator[Session]:
        if self.shut:
            raise DatabaseBusy
        with super().write() as session:
            yield session


def test_unreleased_deliveries_are_revoked_by_the_next_run(
    db: Database, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint(db, receiver.url("hang"))
    happen(db, 3)
    shut = Shut(db.url, patience=10)

    with delivering(shut, config(webhook_timeout_seconds=30), deliveries_grace=0.1):
        eventually(lambda: len(receiver.requests) > 0)
        shut.shut = True
    shut.close()
    with db.read() as session:
        assert not free(session)

    with delivering(db):
        eventually(lambda: len(receiver.requests) > 2)
    with db.read() as session:
        assert free(session)
    assert states(db) == {"pending": 3}


@pytest.mark.verify  # it races a clock
def test_hanging_receivers_do_not_delay_others(db: Database, receiver: Receiver) -> None:
    hanging = 100
    for n in range(hanging):
        endpoint(db, receiver.url(f"hang/{n}"), f"we_hang_{n}")
    happen(db, 5)
    with delivering(db, config(webhook_timeout_seconds=15)):
        eventually(lambda: len(receiver.requests) >= hanging)
        endpoint(db, receiver.url("ok"), "we_good")
        began: dict[str, float] = {}
        for n in range(100, 130):
            began[f"batch_{n}"] = time.time()
            happen(db, start=n)
            threading.Event().wait(0.05)
        eventually(lambda: len(receiver.of("ok")) == 30)

    waits = [request.at - began[request.verify(SECRET)["data"]["id"]] for request in receiver.of("ok")]  # type: ignore[index]
    print(f"first attempt beside {hanging} hanging receivers: p50 {statistics.median(waits):.2f} s")
    assert sorted(waits)[int(len(waits) * 0.95)] < 5.0  # they hang for 15 s


BAD = ("500", "hang", "trickle", "reset", "redirect", "410", "throttle", "huge", "nonsense", "bomb")


@pytest.mark.verify  # it races a clock
@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_bad_receivers_get_their_deliveries_without_delaying_good_receiver(db: Database, receiver: Receiver) -> None:
    """F15: ten bad endpoints and a good one, 30 events each, the schedule a thousand times faster."""
    count = 30
    with Receiver() as canary:
        for name in BAD:
            path = {"redirect": f"redirect?to={canary.url()}", "throttle": "throttle?after=1"}.get(name, name)
            endpoint(db, receiver.url(path), f"we_{name}")
        endpoint(db, receiver.url("ok"), "we_good")
        memory = psutil.Process().memory_info().rss
        began: dict[str, float] = {}
        with delivering(db, config(webhook_timeout_seconds=1)):
            for n in range(count):
                began[f"batch_{n}"] = time.time()
                happen(db, start=n)
                threading.Event().wait(0.1)
            eventually(lambda: _ended(db, "we_500") == count and _ended(db, "we_redirect") == count, 90)
            eventually(lambda: _ended(db, "we_throttle") == count and _ended(db, "we_trickle") == count, 90)

        grown = psutil.Process().memory_info().rss - memory
        assert canary.connections == 0, "a redirect was followed"
    waits = sorted(
        request.at - began[request.verify(SECRET)["data"]["id"]]  # type: ignore[index]
        for request in receiver.of("ok")
    )
    late = _lateness(receiver, "500")
    middle, most = waits[count // 2], waits[count * 95 // 100]
    print(f"good: p50 {middle:.3f} s, p95 {most:.3f} s; schedule: median {late:+.0%}; memory +{grown >> 20} MB")
    assert len(waits) == count
    assert most < 5.0
    assert abs(late) < 0.25
    assert grown < 100 << 20
    with db.read() as session:
        assert session.get_one(WebhookEndpoint, "we_410").disabled_reason == "gone"
    delivered = {name: _ended(db, f"we_{name}", "delivered") for name in ("good", "trickle", "huge", "bomb")}
    assert delivered == dict.fromkeys(delivered, count)
    gaps = _gaps(receiver, "throttle")
    assert min(min(gap) for gap in gaps) >= 0.99, "Retry-After: 1 was not waited for"


def _ended(db: Database, name: str, *wanted: str) -> int:
    with db.read() as session:
        ended = Delivery.state.in_(wanted or ("delivered", "failed"))
        return session.scalar(select(func.count()).where(Delivery.endpoint_id == name, ended)) or 0


def _gaps(receiver: Receiver, path: str) -> list[list[float]]:
    """Return the times between the attempts of each delivery."""
    times: dict[str, list[float]] = defaultdict(list)
    for request in receiver.of(path):
        times[request.webhook_id].append(request.at)
    return [[later - sooner for sooner, later in itertools.pairwise(seen)] for seen in times.values()]


def _lateness(receiver: Receiver, path: str) -> float:
    """How far the waits that are long enough to tell are off the schedule, in the median; jitter cancels out."""
    off = [
        gap / SCHEDULE[n] - 1 for gaps in _gaps(receiver, path) for n, gap in enumerate(gaps, 1) if SCHEDULE[n] >= 1.0
    ]
    return statistics.median(off)


WORKER = """
import sys, threading
from dataclasses import replace
from jobs.db.engine import Database
from jobs.settings import Settings
from jobs.timings import Timings
from workers.webhooks import loop
from workers.webhooks.loop import AHEAD

db = Database(sys.argv[1], patience=10)
config = Settings(webhook_allow_private=True, webhook_retry_seconds=(0, 1))
loop.run(db, config, sys.argv[2], threading.Event(), replace(Timings(), deliveries_idle=60.0))
"""


@pytest.mark.verify
def test_killed_delivery_process_loses_no_event_and_repeats_are_bounded(db: Database, receiver: Receiver) -> None:
    """F16: kill -9 in the middle, again and again; what the dead held is taken back as the dispatcher does it."""
    kills, count, dice = 5, 240, random.Random(16)
    names = [f"we_{n}" for n in range(4)]
    for name in names:
        endpoint(db, receiver.url(f"slow/{name}"), name)
    happen(db, count // len(names))

    for n in range(kills):
        process = _worker(db, f"io-{n}")
        seen = len(receiver.requests)
        eventually(lambda seen=seen: len(receiver.requests) > seen)  # type: ignore[misc]
        threading.Event().wait(dice.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        with db.write() as session:
            for dead in claims.orphans(session):
                claims.revoke_claims(session, dead)
    with delivering(db):
        eventually(lambda: states(db)["delivered"] == count, 60)

    times = Counter(request.webhook_id for request in receiver.requests if request.verify(SECRET))
    repeats = sum(times.values()) - len(times)
    print(f"{count} deliveries, {kills} kills: {repeats} sent more than once")
    assert len(times) == count
    assert repeats <= kills * AHEAD * len(names), "no more than what a process holds"
    bodies = defaultdict(set)
    for request in receiver.requests:
        bodies[request.webhook_id].add(request.body)
    assert all(len(kinds) == 1 for kinds in bodies.values())


def _worker(db: Database, name: str) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, db.engine.url.render_as_string(hide_password=False), name],
        env={**os.environ, "PYTHONPATH": root},
        cwd=root,
    )
