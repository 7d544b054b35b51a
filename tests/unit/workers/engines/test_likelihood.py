"""The likelihood of a text: the answer of engines that compute it, and the refusals of others."""

import math
from pathlib import Path

import msgspec
import pytest

from jobs.requests.endpoints import BERTSCORE, LIKELIHOOD
from tests.unit.workers.engines.http.test_http_engine import engine_of
from workers.engines.fake import FakeEngine
from workers.engines.http.endpoints import Endpoint
from workers.engines.port import EngineFault, Request, Score, likelihood_answer
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
async def test_no_other_server_is_asked(url: str) -> None:
    async with engine_of(Endpoint("http://127.0.0.1:9", serves={"m": "m"})) as engine:
        answer = await engine.answer(Request(url, {"model": "m", "input": "text"}, "req"))

    assert answer.status == 400


async def test_unknown_model_is_not_started(tmp_path: Path) -> None:
    engine = VllmEngine("/nowhere", ["m"], {}, tmp_path / "pids")

    answer = await engine.answer(Request(LIKELIHOOD, {"model": "other", "input": "text"}, "req"))

    assert answer.status == 404
