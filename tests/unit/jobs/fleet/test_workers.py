"""Workers that are alive, what they serve, and models remembered while their endpoint is away."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from sqlalchemy import select

from jobs.db.engine import Database
from jobs.fleet import workers as fleet
from jobs.fleet.models_file import ANY_MODEL
from jobs.fleet.tables import Model, Worker
from tests.support.worker_rows import worker_row


def worker(name: str, **changes: Any) -> Worker:
    return worker_row(name, **{"host": "here", "models": ["tiny"], **changes})


def register(db: Database, *workers: Worker) -> None:
    with db.write() as session:
        for one in workers:
            fleet.register(session, one)


def test_slots_are_those_of_ready_workers_per_queue(db: Database) -> None:
    register(
        db,
        worker("a"),
        worker("b", queues=["gpu.generate", "gpu.embed"], slots=3),
        worker("c", state="starting"),
        worker("d", state="stopping"),
    )

    with db.read() as session:
        assert fleet.slots(fleet.alive(session)) == {"gpu.generate": 5, "gpu.embed": 3}
        assert [one.id for one in fleet.alive(session)] == ["a", "b"]
        assert [one.id for one in fleet.alive(session, "gpu.embed")] == ["b"]


def test_model_is_served_by_worker_naming_it_or_any_model(db: Database) -> None:
    register(db, worker("a"), worker("b", queues=["elsewhere"], models=[ANY_MODEL]))

    with db.read() as session:
        assert fleet.serves(session, "gpu.generate", "tiny")
        assert not fleet.serves(session, "gpu.generate", "huge")
        assert fleet.serves(session, "elsewhere", "huge")
        assert not fleet.serves(session, "nowhere", "tiny")


def test_heartbeat_updates_worker_and_reports_unknown_worker(db: Database) -> None:
    register(db, worker("a", state="starting"))

    with db.write() as session:
        known = fleet.heartbeat(session, "a", state="ready", models=["tiny", "more"])
        gone = fleet.heartbeat(session, "b")

    assert (known, gone) == (True, False)
    with db.read() as session:
        (one,) = fleet.alive(session)
    assert (one.heartbeat, one.models) == (1, ["tiny", "more"])
    assert one.seen_at > 1


def test_repeated_registration_replaces_worker(db: Database) -> None:
    register(db, worker("a", slots=1))
    register(db, worker("a", slots=4))

    with db.read() as session:
        assert fleet.slots(fleet.alive(session)) == {"gpu.generate": 4}


def test_two_threads_of_a_worker_that_was_taken_for_dead_may_both_register_it(db: Database) -> None:
    both = threading.Barrier(2)

    def heartbeat(slots: int) -> bool:
        with db.write() as session:
            known = fleet.heartbeat(session, "a")
            with suppress(threading.BrokenBarrierError):  # SQLite lets one of them write at a time
                both.wait(0.3)
            if not known:
                fleet.register(session, worker("a", slots=slots))
            return known

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(heartbeat, (3, 3)))

    assert False in found
    with db.read() as session:
        assert fleet.slots(fleet.alive(session)) == {"gpu.generate": 3}


def test_leaving_worker_is_removed(db: Database) -> None:
    register(db, worker("a"), worker("b"))

    with db.write() as session:
        fleet.leave(session, "a")
        fleet.leave(session, "a")

    with db.read() as session:
        assert [one.id for one in fleet.alive(session)] == ["b"]


def test_models_of_endpoints_are_remembered_by_many_workers_at_once(db: Database) -> None:
    names = {f"model-{n}": bool(n % 2) for n in range(20)}
    start = threading.Barrier(4)

    def remember(number: int) -> None:
        start.wait()
        with db.write() as session:
            fleet.store_models(session, dict(sorted(names.items(), reverse=bool(number % 2))), "gpu.generate")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(remember, range(4)))

    with db.read() as session:
        assert {model.id: model.external for model in session.scalars(select(Model))} == names


def test_repeated_sighting_updates_model_and_keeps_creation_time(db: Database) -> None:
    with db.write() as session:
        fleet.store_models(session, {"m": False}, "gpu.generate")
    with db.read() as session:
        first = session.get_one(Model, "m")
    with db.write() as session:
        fleet.store_models(session, {"m": True}, "gpu.generate")

    with db.read() as session:
        again = session.get_one(Model, "m")
    assert again.external
    assert again.created_at == first.created_at
    assert again.seen_at >= first.seen_at


def _holding(name: str, state: str, models: list[str], **up: bool) -> Worker:
    """Make a worker whose engines are `up` or not."""
    holds = {model: {"entry": "e", "up": is_up, "since": 5.0, "phase": "p"} for model, is_up in up.items()}
    return worker(name, state=state, models=models, engines=holds)


def test_a_model_is_loading_while_a_worker_loads_it_and_no_other_answers_it() -> None:
    starting, there = _holding("a", "starting", [], tiny=False), _holding("b", "ready", ["tiny"], tiny=True)
    again = _holding("c", "ready", ["tiny", "mini"], tiny=False, mini=True)
    found = fleet.Loading("tiny", "p", 5.0)

    assert fleet.loading([starting], "gpu.generate", "tiny") == found
    assert fleet.loading([again], "gpu.generate", "tiny") == found
    assert fleet.loading([again], "gpu.generate", "mini") is None, "it answers meanwhile"
    assert fleet.loading([starting, there], "gpu.generate", "tiny") is None
    assert fleet.loading([starting], "gpu.embed", "tiny") is None
    assert fleet.loading([], "gpu.generate", "tiny") is None


def test_remote_model_reports_loading_phase_of_its_worker() -> None:
    starting = _holding("a", "starting", [], tiny=False)

    assert fleet.loading([starting], "gpu.generate", "remote") == fleet.Loading("tiny", "p", 5.0)
    assert fleet.loading([worker("a", state="starting", models=[])], "gpu.generate", "tiny") == fleet.Loading(
        "", "starting its worker", 1.0
    )
