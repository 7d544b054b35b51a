"""Health without a key: alive, ready, measured."""

import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event
from sqlalchemy.orm import Session

from api.health.metrics import Exposition
from api.ttl_cache import Recent
from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.fleet.tables import Model, Pause, Worker
from jobs.inference.tables import CacheUse
from jobs.ledger import measures, pauses
from jobs.ledger.pauses import Scope
from jobs.ledger.tables import Job, Outbox
from jobs.queues import Queue, Task
from jobs.setting_groups import MB
from jobs.timings import Timings
from tests.support import sample_jobs, worker_steps
from tests.support.background_thread import beside
from tests.support.interactive_api import running_broker
from tests.support.query_plans import explained
from tests.support.system import pause
from tests.support.worker_rows import worker_row
from tests.unit.api.batches.test_batches import create
from tests.unit.api.conftest import local_client


def worker(**changes: object) -> Worker:
    given = {"id": "cpu-1", "pool": "cpu", "queues": ["cpu.plan"], "restarts": 1}
    return worker_row(**given | {"created_at": now(), "seen_at": now()} | changes)


def test_a_process_that_runs_is_alive(nobody: TestClient) -> None:
    assert nobody.get("/livez").json() == {"status": "ok"}


def test_status_shows_queue_depth_and_worker_slots(app: FastAPI, client: TestClient, nobody: TestClient) -> None:
    create(client, "f")
    with app.state.services.db.write() as session:
        session.add(worker())

    ready = nobody.get("/statusz")

    assert ready.status_code == 200
    assert (ready.json()["status"], ready.json()["database"]) == ("ready", "ok")
    assert ready.json()["depth"] == {"cpu.plan": 1}
    assert ready.json()["oldest_seconds"]["cpu.plan"] < 60
    assert ready.json()["workers"] == {"cpu.plan": 2}
    assert ready.json()["last_heartbeat_at"] == pytest.approx(now(), abs=60)


@pytest.fixture
def waiting(app: FastAPI, client: TestClient) -> str:
    """Create a job whose message is two minutes old."""
    job_id: str = create(client, "f")["id"]
    with app.state.services.db.write() as session:
        session.query(Outbox).update({Outbox.due_at: now() - 120, Outbox.created_at: now() - 120})
    return job_id


def _minute_passes(app: FastAPI) -> None:
    watch = app.state.health.watch
    before = watch._clock
    watch._clock = lambda: before() + 61
    watch._recent._until = 0.0


def test_work_unclaimed_for_60_seconds_makes_status_503(app: FastAPI, nobody: TestClient, waiting: str) -> None:
    first = nobody.get("/statusz")
    _minute_passes(app)
    second = nobody.get("/statusz")

    assert (first.status_code, first.json()["stuck"]) == (200, [])  # it may have come a moment ago
    assert (second.status_code, second.json()["status"], second.json()["stuck"]) == (503, "stuck", ["cpu.plan"])


_PLANNED, _PARSED, _GRADED = Queue.PLAN, Queue.INGEST, Queue.EVALUATE


@pytest.mark.parametrize(
    ("waiting", "held", "served", "stuck"),
    [
        ({_PLANNED: "one"}, {_GRADED: "two"}, [_PLANNED, _GRADED], [_PLANNED]),
        ({_PLANNED: "one"}, {_PARSED: "two"}, [_PLANNED, _PARSED], [_PLANNED]),
        ({_PLANNED: "one"}, {_PARSED: "one"}, [_PLANNED, _PARSED], []),  # for its own work in the same pool
        ({_PLANNED: "one", _GRADED: "one"}, {_GRADED: "two"}, [_PLANNED, _GRADED], [_PLANNED]),
        ({_GRADED: "one"}, {_GRADED: "two"}, [_GRADED], []),
        ({_PLANNED: "one", _GRADED: "one"}, {}, [_PLANNED, _GRADED], [_GRADED, _PLANNED]),
        ({_GRADED: "one"}, {}, [_PLANNED], []),  # nobody serves it
        ({_PLANNED: "one"}, {}, [], [_PLANNED]),  # nobody can do anything
    ],
)
def test_queue_is_stuck_regardless_of_work_in_other_queues(
    app: FastAPI,
    nobody: TestClient,
    waiting: dict[Queue, str],
    held: dict[Queue, str],
    served: list[Queue],
    stuck: list[Queue],
) -> None:
    db = app.state.services.db
    with db.write() as session:
        session.add(worker(queues=served))
    for queue, project in waiting.items():
        _work_on(db, queue, project)
    for queue, project in held.items():
        sample_jobs.claim_shard(db, _work_on(db, queue, project), worker="cpu-1")
    with db.write() as session:
        session.query(Outbox).update({Outbox.due_at: now() - 120})

    first = nobody.get("/statusz").json()
    _minute_passes(app)
    second = nobody.get("/statusz").json()

    assert (first["stuck"], second["stuck"]) == ([], stuck)
    assert second["status"] == ("stuck" if stuck else "ready")


def _work_on(db: Database, queue: Queue, project: str) -> str:
    if queue == Queue.PLAN:
        return sample_jobs.submitted(db, project_id=project).id
    return sample_jobs.running(db, [1], queue, project_id=project).id


def test_a_queue_that_claims_is_not_stuck_however_old_its_messages_are(app: FastAPI, nobody: TestClient) -> None:
    """The oldest message was taken between two looks, and the next one is as old."""
    db = app.state.services.db
    jobs = [sample_jobs.submitted(db) for _ in range(2)]
    with db.write() as session:
        session.add(worker())
        session.query(Outbox).update({Outbox.due_at: now() - 120})
    nobody.get("/statusz")
    _minute_passes(app)
    with db.write() as session:
        session.query(Outbox).filter(Outbox.job_id == jobs[0].id).delete()

    assert nobody.get("/statusz").json()["status"] == "ready"


def test_job_finishing_in_another_pool_does_not_hide_stuck_plan_queue(app: FastAPI, nobody: TestClient) -> None:
    db = app.state.services.db
    with db.write() as session:
        session.add(worker(queues=[Queue.GENERATE]))
    finished = sample_jobs.finishing(db, [1])
    sample_jobs.claim_job(db, finished.id, Task.FINISH, "cpu-1")
    sample_jobs.submitted(db, project_id="other")
    with db.write() as session:
        session.query(Outbox).update({Outbox.due_at: now() - 120})
    nobody.get("/statusz")
    _minute_passes(app)

    assert nobody.get("/statusz").json()["stuck"] == [Queue.PLAN]
    assert (nobody.get("/statusz").status_code, nobody.get("/readyz").status_code) == (503, 200)


@pytest.mark.parametrize("setting", ["streams_url", "broker_url"])
def test_full_broker_is_reported_in_status_and_metrics(
    make_app: Callable[..., FastAPI], tmp_path: Path, setting: str
) -> None:
    """Fill a broker, of the requests of interactive clients or of Celery's messages."""
    with running_broker(tmp_path) as url, redis.Redis.from_url(url) as server:
        others = {} if setting == "broker_url" else {"broker_url": "amqp://guest@127.0.0.1:1//"}
        app = make_app(**{setting: url.replace("unix:", "redis+socket:")}, **others)
        nobody = local_client(app)
        server.config_set("maxmemory", 16 * MB)
        before = nobody.get("/statusz").json()["status"], _gauge(nobody, "nightmill_broker_full")
        for _ in range(10):
            server.rpush("filled", bytes(MB))
        app.state.health.broker._recent._until = app.state.health.exposition._recent._until = 0.0
        ready = nobody.get("/statusz")
        after = ready.json()["status"], _gauge(nobody, "nightmill_broker_full")

    assert (before, after) == (("ready", 0.0), ("broker_full", 1.0))
    assert ready.status_code == 200, "files and batches need no broker"


def test_unreachable_broker_is_not_reported_as_full(make_app: Callable[..., FastAPI]) -> None:
    nobody = local_client(make_app(broker_url="redis://127.0.0.1:1/0"))

    assert nobody.get("/statusz").json()["status"] == "ready"
    assert _gauge(nobody, "nightmill_broker_full") == 0.0


def _gauge(nobody: TestClient, name: str) -> float:
    families = text_string_to_metric_families(nobody.get("/metrics").text)
    [value] = [sample.value for family in families for sample in family.samples if sample.name == name]
    return float(value)


def test_a_job_that_waits_for_its_model_makes_nothing_unready(app: FastAPI, nobody: TestClient, waiting: str) -> None:
    from jobs.ledger import ledger

    with app.state.services.db.write() as session:
        ledger.wait_for(session, waiting, "model")
    nobody.get("/statusz")
    _minute_passes(app)

    assert nobody.get("/statusz").status_code == 200


def test_work_in_paused_queue_does_not_make_status_503(app: FastAPI, nobody: TestClient, waiting: str) -> None:
    found = _after_a_minute(app, nobody, lambda session: pauses.pause(session, Scope.QUEUE, Queue.PLAN, actor="op"))

    assert found == [200, 503]


@pytest.mark.parametrize("scope", [Scope.QUEUE, Scope.MODEL, Scope.PROJECT])
def test_lines_in_paused_scope_do_not_make_status_503(
    app: FastAPI, client: TestClient, nobody: TestClient, scope: Scope
) -> None:
    db = app.state.services.db
    job_id = create(client, "f")["id"]
    worker_steps.plan(db, job_id, 1)
    with db.write() as session:
        session.add(worker(queues=[Queue.GENERATE]))
    job = sample_jobs.job(db, job_id)
    name = {Scope.QUEUE: Queue.GENERATE, Scope.MODEL: job.model or "", Scope.PROJECT: job.project_id}[scope]

    assert _after_a_minute(app, nobody, lambda session: pauses.pause(session, scope, name, actor="op")) == [200, 503]


def test_paused_model_does_not_hide_stuck_plan_queue(app: FastAPI, nobody: TestClient, waiting: str) -> None:
    found = _after_a_minute(app, nobody, lambda session: pauses.pause(session, Scope.MODEL, "m", actor="op"))

    assert found == [503, 503]


def test_lines_that_are_not_to_be_run_yet_make_nothing_unready(
    app: FastAPI, client: TestClient, nobody: TestClient
) -> None:
    job_id = create(client, "f")["id"]
    worker_steps.plan(app.state.services.db, job_id, 1)

    found = _after_a_minute(app, nobody, lambda session: session.query(Job).update({Job.not_before: now() + 600}))

    assert found == [200, 200]


def _after_a_minute(app: FastAPI, nobody: TestClient, change: Callable[[Session], object]) -> list[int]:
    """Return a probe's answers on messages two minutes old: for a minute after the change, then without a pause."""
    db = app.state.services.db
    with db.write() as session:
        session.query(Outbox).update({Outbox.due_at: now() - 120})
        change(session)
    found = []
    for _ in range(2):
        app.state.health.watch._recent._until = 0.0
        nobody.get("/statusz")
        _minute_passes(app)
        found.append(nobody.get("/statusz").status_code)
        with db.write() as session:
            session.query(Pause).delete()
    return found


def test_a_message_counts_until_it_is_claimed_also_after_it_was_published(app: FastAPI, nobody: TestClient) -> None:
    db, name = app.state.services.db, "nightmill_queue_oldest_seconds"
    job = sample_jobs.submitted(db)
    with db.write() as session:
        session.query(Outbox).update({Outbox.created_at: now() - 600, Outbox.published_at: now()})
    age = _gauge(nobody, name)
    waiting = nobody.get("/statusz").json()["oldest_seconds"]
    sample_jobs.claim_job(db, job.id, Task.PLAN)
    app.state.health.exposition._recent._until = 0.0

    assert age == pytest.approx(600, abs=60)
    assert waiting == {Queue.PLAN: pytest.approx(600, abs=60)}
    assert f'{name}{{queue="{Queue.PLAN}"}}' not in nobody.get("/metrics").text


def database_of(app: FastAPI) -> Path:
    return Path(app.state.services.db.url.removeprefix("sqlite:///"))


def test_draining_process_is_alive_but_not_ready(app: FastAPI, nobody: TestClient) -> None:
    app.state.services.draining.set()

    ready, status, alive = (nobody.get(path) for path in ("/readyz", "/statusz", "/livez"))

    assert (ready.status_code, ready.json()) == (503, {"status": "stopping", "database": "ok"})
    assert (status.status_code, alive.status_code) == (200, 200)


def test_without_its_database_the_process_lives_and_says_503(app: FastAPI, nobody: TestClient) -> None:
    database = database_of(app)
    app.state.services.db.close()
    database.rename(database.with_name("away.db"))
    database.mkdir()

    ready, status = nobody.get("/readyz"), nobody.get("/statusz")
    scrape, alive = nobody.get("/metrics"), nobody.get("/livez")

    assert [ready.status_code, status.status_code] == [503, 503]
    assert ready.json() == {"status": "unavailable", "database": "unavailable"}
    assert status.json()["database"] == "unavailable"
    assert scrape.status_code == 503
    assert alive.status_code == 200


def test_a_database_that_is_busy_is_503_and_worth_another_try(app: FastAPI, client: TestClient) -> None:
    body = {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    with Path(f"{database_of(app)}.lock").open("a") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        busy = client.post("/v1/batches", json=body)
    after = client.post("/v1/batches", json=body)

    assert busy.status_code == 503
    assert busy.json()["error"]["code"] == "database_unavailable"
    assert int(busy.headers["Retry-After"]) > 0
    assert after.status_code == 200


def test_metrics_count_jobs_items_tokens_and_events(app: FastAPI, client: TestClient, nobody: TestClient) -> None:
    db, storage = app.state.services.db, app.state.services.storage
    worker_steps.run(db, storage, create(client, "f")["id"], 5, failed=1)
    live = create(client, "f")["id"]
    worker_steps.plan(db, live, 4)
    worker_steps.answer(db, storage, worker_steps.take(db, live), [0, 1])
    create(client, "f")
    with db.write() as session:
        session.add(worker())
        session.add(Model(id="m", queue="gpu.generate", created_at=now(), seen_at=now()))
        session.add(CacheUse(kind="answers", hits=3, misses=4))
        sample_jobs.quarantined(session, "m", host_devices="host")
        measures.observe_all(session, measures.ENGINE, "m", [0.02, 0.3, 100_000.0])
        measures.observe(session, measures.WEBHOOK, "", 0.2)
        measures.count(session, measures.RESTARTS, "gpu", 2)
        measures.count(session, measures.REFUSALS, "", 3)

    text = nobody.get("/metrics").text

    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["nightmill_jobs", "embedding", "succeeded"] == 1
    assert samples["nightmill_jobs", "embedding", "running"] == 1
    assert samples["nightmill_items_total", "completed", "m"] == 6
    assert samples["nightmill_items_total", "failed", "m"] == 1
    assert samples["nightmill_tokens_total", "input", "m"] == 18
    assert samples["nightmill_tokens_total", "m", "output"] == 12
    assert samples["nightmill_queue_depth", "cpu.plan"] == 1
    assert samples["nightmill_shards_running", "gpu.generate"] == 1
    assert samples["nightmill_worker_slots", "cpu.plan"] == 2
    assert samples["nightmill_engine_quarantined", "host", "m"] == 1
    assert samples["nightmill_engine_restarts_total", "gpu"] == 2, "of workers that are gone"
    assert samples[("nightmill_broker_refusals_total",)] == 3
    assert samples[("nightmill_lease_losses_total",)] == 0
    assert samples["nightmill_answers_total", "m", "stop"] == 6, "four of the ended job, two of the one that runs"
    assert samples["nightmill_errors_total", "engine_error", "m"] == 1
    assert samples["nightmill_cache_lookups_total", "answers", "hit"] == 3
    assert samples["nightmill_cache_lookups_total", "answers", "miss"] == 4
    assert samples["nightmill_job_wait_seconds_count", "embedding"] == 2
    assert samples["nightmill_job_seconds_count", "embedding"] == 1
    assert samples["nightmill_job_seconds_bucket", "+Inf", "embedding"] == 1
    took = [samples["nightmill_engine_seconds_bucket", le, "m"] for le in ("0.01", "0.025", "0.5", "86400.0", "+Inf")]
    assert took == [0, 1, 2, 2, 3]
    assert samples["nightmill_engine_seconds_sum", "m"] == pytest.approx(100_000.32)
    assert samples["nightmill_webhook_seconds_bucket", "0.25"] == 1
    assert samples["nightmill_http_request_seconds_count", "/v1/batches", "200", "POST"] >= 3


def test_a_scrape_reads_through_no_table_that_only_grows(app: FastAPI) -> None:
    services = app.state.services
    exposition = Exposition(services.config, services.db, services.models, lambda: False, 0.0)

    with explained(services.db) as steps:
        exposition.text()

    grown = ("job", "outcome", "audit", "event", "delivery", "shard", "segment")
    assert steps
    scans = [step for step in steps if step.startswith("SCAN ") and step.split()[1] in grown]
    assert [step for step in scans if not step.endswith(("ix_delivery_due", "ix_delivery_failed"))] == []


def test_slow_metrics_are_cached_longer(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[float] = []

    def slow(_: Session) -> Iterator[Metric]:
        read.append(time.monotonic())
        pause(0.3)
        yield from ()

    monkeypatch.setattr("api.health.metrics._READERS", (slow,))
    exposition = Exposition(
        app.state.services.config, app.state.services.db, app.state.services.models, lambda: False, 0.0
    )

    for _ in range(3):
        exposition.text()

    assert len(read) == 1


def test_a_model_that_only_a_job_names_is_no_label(app: FastAPI, client: TestClient, nobody: TestClient) -> None:
    db, storage = app.state.services.db, app.state.services.storage
    for _ in range(2):
        worker_steps.run(db, storage, create(client, "f")["id"], 5, failed=1)
    with db.write() as session:
        for n, job in enumerate(session.query(Job)):
            job.model = f"whatever was written {n}"
            measures.observe_all(session, measures.ENGINE, job.model, [0.02])

    text = nobody.get("/metrics").text

    assert "whatever" not in text
    assert 'nightmill_items_total{model="other",result="completed"} 8.0' in text
    assert 'nightmill_engine_seconds_count{model="other"} 2.0' in text


def test_scrape_returns_cached_metrics_during_concurrent_measurement(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    exposition = Exposition(
        app.state.services.config, app.state.services.db, app.state.services.models, lambda: False, 5.0
    )
    exposition.text()
    exposition._recent._until = 0.0

    def slow(_: Session) -> Iterator[Metric]:
        begun.set()
        assert go_on.wait(30)
        yield from ()

    monkeypatch.setattr("api.health.metrics._READERS", (slow,))

    def scrape(_: threading.Event) -> None:
        exposition.text()

    with beside(scrape):
        assert begun.wait(30)
        assert b"nightmill_jobs" in exposition.text(), "the last one"
        go_on.set()


def test_readiness_is_looked_up_once_a_while(make_app: Callable[..., FastAPI]) -> None:
    app, asked = make_app(timings=replace(Timings(), readiness_cached=60.0)), list[str]()
    nobody = local_client(app)
    event.listen(app.state.services.db.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))

    for path in ("/readyz", "/statusz"):
        before, first = len(asked), nobody.get(path)
        once = len(asked)
        again = [nobody.get(path).json() for _ in range(20)]

        assert once > before
        assert (again, len(asked)) == ([first.json()] * 20, once)


def test_unavailable_database_is_queried_once_per_second() -> None:
    tries = 0

    def look() -> str:
        nonlocal tries
        tries += 1
        raise DatabaseBusy

    recent = Recent[str](60.0)
    for _ in range(3):
        with pytest.raises(DatabaseBusy):
            recent.get(look)

    assert tries == 1
