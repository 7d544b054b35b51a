"""The likelihood of a text: the answer of engines that compute it, and the refusals of others."""

import asyncio
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.requests.endpoints import BERTSCORE, LIKELIHOOD
from tests.support.fake_engine import FakeEngine
from tests.support.scripted_server import engine_of
from workers.engines.adapter_slots import AdapterSlots
from workers.engines.http.endpoints import Endpoint
from workers.engines.port import Adapter, AdapterRefused, EngineFault, Request, Score, likelihood_answer
from workers.engines.vllm.vllm_adapters import TEXTS_AT_ONCE, TURN_CHARACTERS, Likelihoods
from workers.engines.vllm.vllm_engine import VllmEngine


def test_tokens_that_were_predicted_are_counted() -> None:
    answer = likelihood_answer("m", Score((1,), (-0.5, -1.5)))

    body = msgspec.json.decode(answer.body)
    assert (answer.status, body["tokens"], body["log_likelihood"]) == (200, 2, -2.0)
    assert (body["usage"]["prompt_tokens"], answer.usage.input_tokens) == (3, 3)


@pytest.mark.parametrize("first", [(), (7,)])
def test_text_of_fewer_than_two_tokens_is_refused(first: tuple[int, ...]) -> None:
    assert likelihood_answer("m", Score(first, ())).status == 400


@pytest.mark.parametrize("logprob", [math.nan, -math.inf])
def test_likelihood_that_is_not_a_number_is_a_fault(logprob: float) -> None:
    with pytest.raises(EngineFault):
        likelihood_answer("m", Score((1,), (-1.0, logprob)))


async def test_fake_engine_has_likelihoods() -> None:
    engine = FakeEngine()
    await engine.start()

    answer = await engine.answer(Request(LIKELIHOOD, {"model": "fake-model", "input": "a bb ccc"}, "req"))

    assert msgspec.json.decode(answer.body)["log_likelihood"] == pytest.approx(-0.5)


@pytest.mark.parametrize("url", [LIKELIHOOD, BERTSCORE])
async def test_http_engine_refuses_likelihood_and_bertscore(url: str) -> None:
    async with engine_of(Endpoint("http://127.0.0.1:9", serves={"m": "m"})) as engine:
        answer = await engine.answer(Request(url, {"model": "m", "input": "text"}, "req"))

    assert answer.status == 400


class Scoring:
    """An engine that scores texts by their lengths. `turns` are the texts that were in it at the same time."""

    def __init__(self, *, one_by_one: bool = False) -> None:
        self.slots = AdapterSlots(1)
        self.likelihoods = Likelihoods(self.slots, self.score, one_by_one=one_by_one)
        self.turns: list[list[str]] = []
        self.inside: list[str] = []

    async def score(self, model: str, text: str, adapter: Adapter | None) -> Score:
        if not self.inside:
            self.turns.append([])
        self.turns[-1].append(text)
        self.inside.append(text)
        await asyncio.sleep(0.001)
        self.inside.remove(text)
        if text == "broken":
            raise EngineFault("It broke.")
        return Score((len(model),), (-float(len(text)),))

    async def all(self, texts: list[str], adapter: Adapter | None = None) -> list[Any]:
        asked = (self.likelihoods.score_text("m", text, adapter) for text in texts)
        return await asyncio.gather(*asked, return_exceptions=True)


ADAPTER = Adapter("lora-a", "a", Path("a"))


async def test_texts_that_wait_are_scored_together() -> None:
    engine, texts = Scoring(), ["x" * n for n in range(1, TEXTS_AT_ONCE + 3)]

    scores = await engine.all(texts)

    assert engine.turns == [texts[:TEXTS_AT_ONCE], texts[TEXTS_AT_ONCE:]]
    assert [score.logprobs for score in scores] == [(-float(len(text)),) for text in texts]


async def test_long_texts_have_turns_of_their_own() -> None:
    engine, long = Scoring(), "x" * TURN_CHARACTERS

    await engine.all([long, "a", "bb", long, "ccc"])

    assert engine.turns == [[long], ["a", "bb"], [long], ["ccc"]]


async def test_sequential_engine_scores_single_text_per_turn() -> None:
    engine = Scoring(one_by_one=True)

    await engine.all(["a", "bb", "ccc"])

    assert engine.turns == [["a"], ["bb"], ["ccc"]]


async def test_scoring_waits_for_running_and_blocks_later_requests() -> None:
    engine = Scoring()
    async with engine.slots.running(None):
        scores = asyncio.create_task(engine.all(["a", "bb"]))
        await asyncio.sleep(0.01)
        assert engine.turns == []
        later = asyncio.create_task(engine.slots.running(None).__aenter__())
        await asyncio.sleep(0.01)
        assert not later.done()

    await scores
    await later
    assert engine.turns == [["a", "bb"]]


async def test_texts_of_an_adapter_are_scored_apart() -> None:
    engine = Scoring()

    await asyncio.gather(engine.all(["a", "bb"]), engine.all(["c"], ADAPTER), engine.all(["dd"]))

    assert engine.turns == [["a", "bb", "dd"], ["c"]]


async def test_broken_text_does_not_affect_other_texts() -> None:
    broken, good = await Scoring().all(["broken", "good"])

    assert isinstance(broken, EngineFault)
    assert good.logprobs == (-4.0,)


async def test_texts_of_a_refused_adapter_are_refused_and_others_scored() -> None:
    engine = Scoring()
    engine.slots = engine.likelihoods._slots = AdapterSlots()  # takes none

    refused, scores = await asyncio.gather(engine.all(["a", "bb"], ADAPTER), engine.all(["c"]))

    assert [type(error) for error in refused] == [AdapterRefused] * 2
    assert scores[0].logprobs == (-1.0,)


async def test_text_of_a_client_that_left_is_not_scored() -> None:
    engine = Scoring()
    async with engine.slots.running(None):
        left, stays = (
            asyncio.create_task(engine.likelihoods.score_text("m", text, None)) for text in ("left", "stays")
        )
        await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.sleep(0)

    assert (await stays).logprobs == (-5.0,)
    assert engine.turns == [["stays"]]


async def test_unknown_model_is_not_started(tmp_path: Path) -> None:
    engine = VllmEngine("/nowhere", ["m"], {}, tmp_path / "pids")

    answer = await engine.answer(Request(LIKELIHOOD, {"model": "other", "input": "text"}, "req"))

    assert answer.status == 404
