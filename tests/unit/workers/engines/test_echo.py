"""An echo with log-probabilities, as lm-evaluation-harness asks for it and reads it."""

from typing import Any

import msgspec
import pytest

from tests.support import stub_engine
from tests.support.fake_engine import FakeEngine
from tests.support.scripted_server import engine_of
from workers.engines.echo import join_answers
from workers.engines.http.endpoints import Endpoint
from workers.engines.port import Answer, Engine, Request, Usage

#: A multiple choice: the context, and its continuations.
CONTEXT = "Water is made of hydrogen and"
CHOICES = [" oxygen", " a nitrogen"]
#: What the harness sends for a task of log-likelihood.
ASKED: dict[str, Any] = {
    "model": "fake-model",
    "max_tokens": 1,
    "logprobs": 1,
    "temperature": 0,
    "seed": 1,
    "echo": True,
}


def loglikelihoods(body: dict[str, Any], context_tokens: int) -> list[float]:
    """Read an answer as the harness does: the tokens behind the context, but for the one that was generated."""
    choices = sorted(body["choices"], key=lambda choice: choice["index"])
    return [sum(choice["logprobs"]["token_logprobs"][context_tokens:-1]) for choice in choices]


async def _score(engine: Engine) -> None:
    prompts = [CONTEXT + choice for choice in CHOICES]
    whole = await engine.answer(Request("/v1/completions", {**ASKED, "prompt": prompts}, "req_1"))
    single = [
        await engine.answer(Request("/v1/completions", {**ASKED, "prompt": prompt}, "req_1")) for prompt in prompts
    ]

    body = msgspec.json.decode(whole.body)
    assert whole.status == 200
    assert loglikelihoods(body, len(CONTEXT.split())) == pytest.approx([-0.6, -0.9])
    alone = [msgspec.json.decode(answer.body) for answer in single]
    assert [loglikelihoods(one, len(CONTEXT.split()))[0] for one in alone] == pytest.approx([-0.6, -0.9])
    for prompt, choice in zip(prompts, body["choices"], strict=True):
        logprobs = choice["logprobs"]
        assert choice["text"].startswith(prompt)
        assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
        assert len({len(values) for values in logprobs.values()}) == 1
        assert [choice["text"][at] for at in logprobs["text_offset"][1:]] == [
            token[0] for token in logprobs["tokens"][1:]
        ]


async def test_a_choice_has_the_log_probability_of_each_token_of_its_prompt() -> None:
    engine = FakeEngine()
    await engine.start()

    await _score(engine)


async def test_http_servers_return_echoed_log_probabilities(tmp_path: Any) -> None:
    with stub_engine.running(tmp_path / "stub.log", "--models", "fake-model") as url:
        async with engine_of(Endpoint(url)) as engine:
            await _score(engine)


async def test_token_ids_are_prompts_too() -> None:
    engine = FakeEngine()
    await engine.start()

    answer = await engine.answer(Request("/v1/completions", {**ASKED, "prompt": [[1, 22], [333]]}, "req_1"))

    choices = msgspec.json.decode(answer.body)["choices"]
    assert [choice["logprobs"]["tokens"][:-1] for choice in choices] == [["1", "22"], ["333"]]


def test_answers_to_single_prompts_are_joined() -> None:
    def answer(text: str, tokens: int) -> Answer:
        usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
        body = {"id": text, "choices": [{"index": 0, "text": text}], "usage": usage}
        return Answer(200, msgspec.json.encode(body), Usage(tokens, 0, 1))

    whole = join_answers([answer("a", 3), answer("b", 4)])

    body = msgspec.json.decode(whole.body)
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "a"), (1, "b")]
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert whole.usage == Usage(7, 0, 2)
