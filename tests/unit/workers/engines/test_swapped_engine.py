"""An engine serves many whole models in turn: it is swapped when it is idle or a turn is over, also when one fails."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.fleet.models_file import Models
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support.fake_engine import FakeEngine
from workers.engines import build_engines, probes
from workers.engines.ownloop import OwnLoop
from workers.engines.port import Adapter, AdapterRefused, Answer, EngineBusy, EngineDead, Request
from workers.engines.probes import Probe
from workers.engines.swapped_engine import SwappedEngine
from workers.engines.vllm.vllm_engine import VllmEngine

CHAT = "/v1/chat/completions"
LONG = replace(Timings(), tuned_turn=3600.0, tuned_retry=3600.0)
SHORT = replace(Timings(), tuned_turn=0.0, tuned_retry=0.0, tuned_rest=0.0)


class Garage:
    """A swapped engine over fake ones. `opened` and `closed` are the names of weights, in order."""

    def __init__(self, folder: Path, timings: Timings = LONG, *, delay: float = 0.01) -> None:
        self.folder, self.delay = folder, delay
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.broken = Counter[str]()  # opens that fail, by the name of the weights
        self.inner: list[FakeEngine] = []
        self.engine = SwappedEngine(self._make, "fake-1", timings)

    def adapter(self, number: int) -> Adapter:
        return Adapter(f"full-{number:016x}", f"{number:064x}", self.folder / str(number), whole=True)

    def _make(self, base: str, adapter: Adapter) -> FakeEngine:
        garage = self

        class Inner(FakeEngine):
            async def start(self) -> None:
                if garage.broken[adapter.name]:
                    garage.broken[adapter.name] -= 1
                    raise EngineDead("no memory")
                if not self._alive:
                    garage.opened.append(adapter.name)
                await super().start()

            async def close(self) -> None:
                garage.closed.append(adapter.name)
                await super().close()

        self.inner.append(Inner((base,), delay=self.delay, voice=adapter.name))
        return self.inner[-1]

    def request(self, number: int, prompt: str = "hi") -> Request:
        body = {"model": "base", "messages": [{"role": "user", "content": prompt}]}
        return Request(CHAT, body, "req", adapter=self.adapter(number))

    async def ask(self, number: int, prompt: str = "hi") -> str:
        """Return the first word of the answer: the name of the weights that gave it."""
        return word_of(await self.engine.answer(self.request(number, prompt)))


def word_of(answer: Answer) -> str:
    body: dict[str, Any] = msgspec.json.decode(answer.body)
    assert answer.status == 200, body
    assert body["model"] == "base"
    return str(body["choices"][0]["message"]["content"]).split()[0]


async def started(work: Callable[[], Awaitable[Any]]) -> "asyncio.Task[Any]":
    """Begin something, and let it come as far as it can at once."""
    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    return task


async def test_each_request_is_answered_by_its_own_weights(tmp_path: Path) -> None:
    garage = Garage(tmp_path)
    await garage.engine.start()
    asked = [n % 3 for n in range(30)]

    words = await asyncio.gather(*(garage.ask(number) for number in asked))

    names = [garage.adapter(number).name for number in range(3)]
    assert words == [names[number] for number in asked]
    assert garage.opened == names
    assert garage.closed == names[:2]


async def test_a_stream_and_a_count_have_the_weights_loaded_first(tmp_path: Path) -> None:
    garage, events = Garage(tmp_path), list[bytes]()

    async def emit(event: bytes) -> None:
        events.append(event)

    answer = await garage.engine.stream(garage.request(1), emit)
    length = await garage.engine.length(garage.request(2))

    assert (answer.status, length) == (200, None)
    assert garage.adapter(1).name.encode() in b"".join(events)
    assert garage.opened == [garage.adapter(number).name for number in (1, 2)]


async def test_a_model_that_runs_is_not_swapped_before_its_requests_have_ended(tmp_path: Path) -> None:
    garage = Garage(tmp_path, SHORT, delay=0.1)
    first = await started(lambda: garage.ask(1))
    await asyncio.sleep(0.02)

    assert await garage.ask(2) == garage.adapter(2).name
    assert first.done()
    assert await first == garage.adapter(1).name


async def test_a_turn_ends_while_others_wait(tmp_path: Path) -> None:
    """Without turns a model that is asked again and again would keep the engine."""
    garage, served = Garage(tmp_path, SHORT, delay=0.02), asyncio.Event()

    async def keep_asking() -> None:
        while not served.is_set():
            await garage.ask(1)

    others = [asyncio.create_task(keep_asking()) for _ in range(3)]
    await garage.ask(1)
    assert await garage.ask(2) == garage.adapter(2).name
    served.set()
    await asyncio.gather(*others)


async def test_unfinished_turn_retains_loaded_model(tmp_path: Path) -> None:
    garage = Garage(tmp_path, LONG, delay=0.05)
    running = [await started(lambda: garage.ask(1)) for _ in range(2)]
    await asyncio.sleep(0.02)
    other = await started(lambda: garage.ask(2))

    late = await garage.ask(1)

    assert (late, other.done()) == (garage.adapter(1).name, False)
    await asyncio.gather(other, *running)
    assert garage.opened == [garage.adapter(1).name, garage.adapter(2).name]


async def test_nothing_is_loaded_for_a_client_that_has_left(tmp_path: Path) -> None:
    garage = Garage(tmp_path, delay=0.05)
    running = await started(lambda: garage.ask(1))
    await asyncio.sleep(0.02)
    leaving = await started(lambda: garage.ask(2))
    leaving.cancel()
    await running
    await asyncio.gather(leaving, return_exceptions=True)
    await garage.ask(1)

    assert garage.opened == [garage.adapter(1).name]


async def test_failing_model_is_retried_and_finally_refused(tmp_path: Path) -> None:
    garage = Garage(tmp_path, replace(SHORT, tuned_rest=3600.0))
    garage.broken[garage.adapter(1).name] = 5

    with pytest.raises(AdapterRefused, match="cannot be started"):
        await garage.ask(1)

    assert garage.broken[garage.adapter(1).name] == 2
    assert await garage.ask(2) == garage.adapter(2).name


async def test_a_model_that_cannot_be_opened_now_is_busy_and_later_served(tmp_path: Path) -> None:
    garage = Garage(tmp_path)
    garage.broken[garage.adapter(1).name] = 1

    for _ in range(2):
        with pytest.raises(EngineBusy, match="cannot be loaded now") as busy:
            await garage.ask(1)
    assert busy.value.retry_after is not None
    assert 3000 < busy.value.retry_after <= 3600
    garage.engine._timings = SHORT
    garage.engine._failures.clear()
    assert await garage.ask(1) == garage.adapter(1).name


async def test_a_model_that_answers_unlike_its_trainer_is_refused_until_an_operator_has_decided(tmp_path: Path) -> None:
    garage = Garage(tmp_path, SHORT)
    folder = garage.adapter(1).folder
    folder.mkdir()
    message = {"role": "user", "content": "hi"}
    probe = Probe(messages=[message], token_ids=(1,), continuation=(2,), logprobs=(-9.0,), base_logprobs=())
    probes.write(folder, [probe])

    for _ in range(2):
        with pytest.raises(AdapterRefused, match="failed its probe") as refused:
            await garage.ask(1)
        assert refused.value.failed_probe
    assert len(garage.opened) == 1
    accepted = replace(garage.adapter(1), trial=1, accepted=True)
    answer = await garage.engine.answer(replace(garage.request(1), adapter=accepted))
    assert answer.status == 200


async def test_dead_engine_is_rebuilt_with_same_weights(tmp_path: Path) -> None:
    garage = Garage(tmp_path)

    with pytest.raises(EngineDead):
        await garage.ask(1, "!crash")
    await garage.engine.start()

    assert await garage.ask(1) == garage.adapter(1).name
    assert garage.opened == [garage.adapter(1).name] * 2
    assert len(garage.inner) == 1


async def test_engine_failing_to_rebuild_makes_room_for_other_models(tmp_path: Path) -> None:
    garage = Garage(tmp_path)
    with pytest.raises(EngineDead):
        await garage.ask(1, "!crash")
    garage.broken[garage.adapter(1).name] = 1

    await garage.engine.start()

    with pytest.raises(EngineBusy):
        await garage.ask(1)
    assert await garage.ask(2) == garage.adapter(2).name


async def test_a_request_without_weights_is_for_an_unknown_model(tmp_path: Path) -> None:
    garage = Garage(tmp_path)

    assert (await garage.engine.answer(replace(garage.request(1), adapter=None))).status == 404
    assert garage.opened == []


async def test_closing_while_a_model_is_opened_leaves_no_engine_behind(tmp_path: Path) -> None:
    garage, opening = Garage(tmp_path), asyncio.Event()

    async def start(_self: FakeEngine) -> None:
        opening.set()
        await asyncio.Event().wait()

    make = garage._make

    def made(base: str, adapter: Adapter) -> FakeEngine:
        engine = make(base, adapter)
        engine.start = partial(start, engine)  # type: ignore[method-assign]
        return engine

    garage.engine._make = made
    waiting = await started(lambda: garage.ask(1))
    await opening.wait()

    await garage.engine.close()

    with pytest.raises(EngineBusy):
        await waiting
    assert garage.closed == [garage.adapter(1).name]


async def test_close_fails_waiting_requests_and_frees_loaded_model(tmp_path: Path) -> None:
    garage = Garage(tmp_path, delay=0.3)
    running = await started(lambda: garage.ask(1))
    await asyncio.sleep(0.05)
    waiting = await started(lambda: garage.ask(2))

    await garage.engine.close()

    with pytest.raises(EngineBusy):
        await waiting
    assert garage.closed == [garage.adapter(1).name]
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("base", ["tiny", "removed-since"])
def test_a_whole_model_has_an_engine_with_the_arguments_of_its_base_but_for_adapters(tmp_path: Path, base: str) -> None:
    args = {"max_model_len": 512, "enable_lora": True, "max_loras": 4, "max_lora_rank": 8}
    tiny = {"source": {"path": "."}, "engine": "vllm", "engine_args": args}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": {"tiny": tiny}}))
    config = Settings(data_dir=tmp_path, models_file=str(tmp_path / "models.yaml"))
    adapter = Adapter("full-1", "1", tmp_path / "weights", whole=True)

    own = build_engines._tuned_engine(config, Models(config), base, adapter)
    assert isinstance(own, OwnLoop)
    engine = own._make()

    assert isinstance(engine, VllmEngine)
    assert (engine.models, engine._model, engine.adapters) == ((base,), str(tmp_path / "weights"), 0)
    assert engine._args == ({"max_model_len": 512} if base == "tiny" else {})
    assert "gpu.tuned" in engine._pids.name


def test_router_of_whole_models_names_the_version_of_their_engine_for_each_base(tmp_path: Path) -> None:
    models = {"tiny": {"source": {"path": "0"}, "engine": "vllm"}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
    settings = Settings(data_dir=tmp_path, models_file=str(tmp_path / "models.yaml"))

    router = build_engines.build_tuned_router(settings, Models(settings))

    assert router.version_of("tiny").startswith("vllm")


@pytest.mark.parametrize("steps", range(8))
def test_awaited_model_answers_before_next_model_is_loaded(tmp_path: Path, steps: int) -> None:
    garage = Garage(tmp_path, delay=0.0)

    async def ask_later() -> str:
        for _ in range(steps):  # of the event loop: the request comes while the first model opens, or just after
            await asyncio.sleep(0)
        return await garage.ask(2)

    async def ask_both() -> list[str]:
        async with asyncio.timeout(30):
            return await asyncio.gather(garage.ask(1), ask_later())

    assert asyncio.run(ask_both()) == [garage.adapter(1).name, garage.adapter(2).name]
    assert garage.opened == [garage.adapter(1).name, garage.adapter(2).name]
