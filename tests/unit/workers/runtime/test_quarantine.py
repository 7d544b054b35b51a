"""An engine that dies again and again is quarantined, over all restarts of its worker; the others go on."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select

from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import quarantine, workers
from jobs.fleet.models_file import Registry
from jobs.fleet.tables import EngineDeath, Quarantine, Worker
from jobs.platform import processes
from jobs.settings import Settings
from tests.support.fake_engine import FakeEngine
from tests.support.system import eventually
from workers.engines.port import Answer, EngineDead, Request
from workers.engines.router import Router
from workers.runtime.answering import Answering
from workers.runtime.context import WorkerStatus
from workers.runtime.engine_host import EngineHost, GaveUp
from workers.runtime.output_lines import Item
from workers.runtime.quarantine import QuarantineKeeper

FILE = """
models:
  tiny: {source: {packaged: smollm2-135m-instruct}, engine: vllm, aliases: [small]}
  other: {source: {packaged: all-minilm-l6-v2}, engine: embed, queue: gpu.generate}
"""
QUEUE = "gpu.generate"


class Mortal(FakeEngine):
    """Comes up unless it is stillborn, and dies at every request, until it is mended."""

    mended = stillborn = False

    async def start(self) -> None:
        if self.stillborn:
            raise OSError("no device")
        await super().start()

    async def answer(self, request: Request) -> Answer:
        if not self.mended:
            await self.close()
            raise EngineDead("out of memory")
        return await super().answer(request)


class Shop:
    """The worker processes of one host, one after the other."""

    def __init__(self, db: Database, folder: Path, **settings: float) -> None:
        self.db = db
        self.folder = folder
        self.config = Settings(data_dir=folder, engine_deaths=3, engine_deaths_seconds=60, **settings)  # type: ignore[arg-type]
        self.text = FILE
        self.log_tail = SimpleNamespace(before=[], last=lambda: ["a line of the log"], flush=lambda: None)
        self.opened: list[Process] = []
        self.workers = 0

    def process(self, **told: bool) -> "Process":
        self.workers += 1
        self.opened.append(Process(self, f"w-{self.workers}", told))
        return self.opened[-1]

    def left(self) -> dict[str, Quarantine]:
        with self.db.read() as session:
            return {row.model: row for row in quarantine.all_quarantines(session)}

    def deaths(self) -> list[EngineDeath]:
        with self.db.read() as session:
            return list(session.scalars(select(EngineDeath).order_by(EngineDeath.created_at)))

    def rested(self) -> None:
        """Whatever is left alone may be tried."""
        with self.db.write() as session:
            for row in quarantine.all_quarantines(session):
                row.until = 0.0


class Process:
    """A worker of `tiny`, which is mortal, and `other`."""

    def __init__(self, shop: Shop, worker_id: str, told: dict[str, bool]) -> None:
        file = shop.folder / "models.yaml"
        file.write_text(shop.text)
        self.shop, self.id = shop, worker_id
        self.tiny = Mortal(("tiny",))
        vars(self.tiny).update(told)
        self.other = FakeEngine(("other",))
        self.router = Router([self.tiny, self.other], Registry.read(file))
        self.stop = threading.Event()
        self.standing = WorkerStatus()
        self.context: Any = SimpleNamespace(
            config=shop.config, db=shop.db, stop=self.stop, worker_id=worker_id, standing=self.standing
        )
        host, pid, started = processes.me()
        facts: dict[str, Any] = {"host": host, "pid": pid, "started": started, "created_at": 1.0, "seen_at": 1.0}
        row = Worker(id=worker_id, pool="gpu", queues=[QUEUE], models=[], slots=1, state="starting", **facts)
        with shop.db.write() as session:
            workers.register(session, row)
        self.engine_health = QuarantineKeeper(self.context, self.router, QUEUE, shop.log_tail)  # type: ignore[arg-type]
        self.host = EngineHost(self.router, lambda: None, on_death=self.router.handle_death)

    def begin(self) -> None:
        self.engine_health.begin()
        self.host.start()

    def ask(self, model: str, *names: str) -> list[int]:
        answers: list[Answer] = []
        items = [item(model, name) for name in names or ("r0",)]
        self.host.call(Answering(self.host, 8, lambda _item, answer: answers.append(answer)).run(items)).result(30)
        return [answer.status for answer in answers]

    def look(self) -> None:
        self.engine_health.look(self.host)
        if self.engine_health._building is not None:
            self.engine_health._building.result(30)

    def row(self) -> Worker:
        with self.shop.db.read() as session:
            return session.get_one(Worker, self.id)

    def killed(self) -> None:
        """As by the kernel: nobody says anything."""
        self.stop.set()
        self.host.close()
        with self.shop.db.write() as session:
            session.get_one(Worker, self.id, populate_existing=True).started = 1
            quarantine.set_engines(session, self.id, processes.host_devices(), self.standing.engines)

    def close(self) -> None:
        self.stop.set()
        if not self.host.loop.is_closed():
            self.host.close()


def item(model: str, custom_id: str) -> Item:
    body = {"model": model, "messages": [{"role": "user", "content": "a secret"}]}
    return Item(
        0, custom_id, f"batch_req_{custom_id}", Request("/v1/chat/completions", body, "req_0", job_id="batch_7")
    )


@pytest.fixture
def make(db: Database, tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    shops: list[Shop] = []

    def make(**settings: float) -> Shop:
        shops.append(Shop(db, tmp_path, **settings))
        return shops[-1]

    yield make
    for shop in shops:
        for one in shop.opened:
            one.close()


@pytest.fixture
def shop(make: Callable[..., Shop]) -> Shop:
    return make()


def gives_up(one: Process) -> None:
    with pytest.raises(GaveUp):
        one.ask("small", "q1", "q2")


def test_an_engine_that_dies_too_often_is_left_alone_and_the_others_go_on(shop: Shop) -> None:
    one = shop.process()
    one.begin()

    gives_up(one)
    starts = one.tiny.starts
    gives_up(one)

    assert one.tiny.starts == starts == 3
    assert one.router.models == ("other",)
    assert one.ask("other") == [200]
    row = shop.left()["tiny"]
    told = "\n".join(quarantine.describe(row))
    assert (row.deaths, row.error) == (3, "out of memory")
    assert "in flight then: batch_7 batch_req_q1 (q1) (2 times), batch_7 batch_req_q2 (q2) (1 times)" in told
    assert "its log: a line of the log" in told
    assert "secret" not in told


def test_request_in_flight_at_other_engine_is_no_suspect(shop: Shop) -> None:
    one = shop.process()
    one.begin()
    gate = threading.Event()

    async def slow(request: Request) -> Answer:
        await asyncio.to_thread(gate.wait, 10)
        return await FakeEngine.answer(one.other, request)

    one.other.answer = slow  # type: ignore[method-assign]
    innocent = Answering(one.host, 8, lambda *_: None)
    running = one.host.call(innocent.run([item("other", "innocent")]))
    eventually(lambda: innocent._begun, 5, "the other is asked")
    one.host.call(one.host.revive(0, _death("tiny"))).result(30)
    gate.set()
    running.result(30)

    assert [row.suspects for row in shop.deaths()] == [[]]


def _death(model: str) -> EngineDead:
    death = EngineDead("gone")
    death.models = (model,)
    return death


def test_deaths_are_counted_over_the_workers_restarts(shop: Shop) -> None:
    for n in range(3):
        one = shop.process(stillborn=True)
        if n < 2:
            with pytest.raises(OSError, match="no device"):
                one.begin()
            one.engine_health.excuse()  # as it does before it ends
        else:
            one.begin()

    assert one.router.models == ("other",)
    assert one.ask("other") == [200]
    assert [row.deaths for row in shop.left().values()] == [3]

    later = shop.process()
    later.begin()

    assert (later.tiny.starts, later.router.models) == (0, ("other",))


def test_death_of_worker_with_its_engine_is_counted_by_next_worker(shop: Shop) -> None:
    shop.log_tail.before = ["Killed"]
    for _ in range(3):
        one = shop.process()
        one.begin()
        one.killed()
        with shop.db.write() as session:
            quarantine.release(session, "other", "nobody")  # which was there each time, too

    last = shop.process()
    last.begin()

    assert (last.tiny.starts, last.router.models) == (0, ("other",))
    row = shop.left()["tiny"]
    assert (row.deaths, row.error, row.lines) == (3, "the worker process was gone all of a sudden", ["Killed"])


def test_stopped_worker_records_no_engine_death(shop: Shop) -> None:
    one = shop.process()
    one.begin()
    one.stop.set()

    one.host.call(one.host.revive(0, _death("tiny"))).result(30)

    assert shop.deaths() == []


def test_engines_are_recorded_before_and_after_start(shop: Shop) -> None:
    one = shop.process()
    one.engine_health.begin()
    before = one.row().engines
    one.host.start()

    assert before is not None
    assert {name: how["up"] for name, how in before.items()} == {"tiny": False, "other": False}
    assert {name: how["up"] for name, how in (one.row().engines or {}).items()} == {"tiny": True, "other": True}
    assert one.row().host_devices == processes.host_devices()


def test_worker_reports_start_time_and_phase_of_engine_loading(shop: Shop) -> None:
    one = shop.process()
    began = now()
    one.tiny.phase = "reading the weights"  # type: ignore[attr-defined]
    one.engine_health.begin()
    before = one.standing.describe_engines()
    one.host.start()

    assert began <= before["tiny"]["since"] <= now()
    assert (before["tiny"]["phase"], before["other"]["phase"]) == ("reading the weights", "")
    assert "phase" not in one.standing.describe_engines()["tiny"]


def test_devices_that_a_process_was_given_are_a_place_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert processes.host_devices() == processes.hostname()

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert processes.host_devices() == f"{processes.hostname()} (devices 1)"


def test_once_the_operator_says_so_it_is_built_and_answers(shop: Shop) -> None:
    one = shop.process()
    one.begin()
    gives_up(one)
    one.tiny.mended = True
    one.look()
    assert one.router.models == ("other",)

    with shop.db.write() as session:
        quarantine.release(session, "tiny", "operator")
    one.look()

    assert one.ask("small") == [200]
    assert set(one.standing.engines) == {"tiny", "other"}


def test_quarantined_engine_gets_a_trial_after_a_rest_and_is_released_after_it(make: Callable[..., Shop]) -> None:
    shop = make(engine_rest_seconds=100)
    one = shop.process()
    one.begin()
    gives_up(one)
    one.tiny.mended = True

    shop.rested()
    one.look()
    assert one.ask("small") == [200]
    assert shop.left()["tiny"].trial == one.id

    one.engine_health._trials["tiny"] -= 61  # type: ignore[operator]
    one.look()

    assert shop.left() == {}


def test_engine_that_dies_on_trial_rests_longer(make: Callable[..., Shop]) -> None:
    shop = make(engine_rest_seconds=100)
    one = shop.process()
    one.begin()
    gives_up(one)
    first = shop.left()["tiny"]

    for _ in range(2):
        shop.rested()
        one.look()
        gives_up(one)

    row = shop.left()["tiny"]
    assert (row.trial, row.tries, one.router.models) == (None, 2, ("other",))
    assert row.until - first.until > 250


def test_engine_that_does_not_start_on_trial_stays_quarantined(shop: Shop) -> None:
    one = shop.process()
    one.begin()
    gives_up(one)
    one.tiny.stillborn = True
    shop.rested()

    one.look()

    row = shop.left()["tiny"]
    assert (row.trial, row.tries, row.error) == (None, 1, "no device")
    assert one.router.models == ("other",)


def test_a_worker_that_is_killed_in_a_trial_is_not_followed_by_another_trial(shop: Shop) -> None:
    one = shop.process()
    one.begin()
    gives_up(one)
    shop.rested()
    assert one.engine_health._may_try("tiny")
    one.killed()

    other = shop.process()
    other.begin()
    other.look()

    assert other.tiny.starts == 0


def test_another_entry_in_the_models_file_is_built(shop: Shop) -> None:
    one = shop.process()
    one.begin()
    gives_up(one)

    shop.text = FILE.replace("engine: vllm,", "engine: vllm, engine_args: {max_num_seqs: 1},")
    two = shop.process(mended=True)
    two.begin()

    assert two.ask("tiny") == [200]
    assert shop.left() == {}
