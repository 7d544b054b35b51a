"""Test that token ids of OpenAI's are embedded as the text they stand for, under OpenAI's names alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bpe_openai
import msgspec
import pytest

from jobs.fleet.models_file import Registry
from tests.support.fake_engine import FakeEngine
from workers.engines.port import Request
from workers.engines.router import Router
from workers.middleware.token_ids import TokenIdMiddleware

OPENAI, OWN, OTHER = "text-embedding-3-small", "mini", "small-vectors"
MODELS = f"""
models:
  {OWN}: {{source: {{packaged: all-minilm-l6-v2}}, engine: embed, aliases: [{OPENAI}, {OTHER}]}}
  text-embedding-3-large: {{source: {{urls: ["http://127.0.0.1:9"]}}, engine: http}}
"""
TEXTS = ["Travel is paid by the finance department.", "请假需要经理批准 🙂"]
IDS = [bpe_openai.get_encoding("cl100k_base").encode(text) for text in TEXTS]

Ask = Callable[..., Any]


@pytest.fixture
def asked() -> list[Any]:
    return []


@pytest.fixture
async def ask(tmp_path: Path, asked: list[Any]) -> Ask:
    def hear(request: Request) -> None:
        asked.append(request.body["input"])

    (tmp_path / "models.yaml").write_text(MODELS, encoding="utf-8")
    engines = FakeEngine((OWN,), fault=hear), FakeEngine(("text-embedding-3-large",), fault=hear)
    router = Router(engines, Registry.read(tmp_path / "models.yaml"))
    layer = TokenIdMiddleware(router, router.is_alias)
    await layer.start()

    async def embed(model: str, value: Any) -> Any:
        answer = await layer.answer(Request("/v1/embeddings", {"model": model, "input": value}, "req_1"))
        return msgspec.json.decode(answer.body)

    return embed


async def test_token_ids_under_openai_name_are_embedded_as_their_text(ask: Ask, asked: list[Any]) -> None:
    many, one, text = await ask(OPENAI, IDS), await ask(OPENAI, IDS[1]), await ask(OPENAI, TEXTS)

    assert asked == [TEXTS, TEXTS[1:], TEXTS]
    assert many["data"] == text["data"]
    assert one["data"][0]["embedding"] == text["data"][1]["embedding"]


@pytest.mark.parametrize("model", [OWN, OTHER, "text-embedding-3-large"])
async def test_ids_under_any_other_name_are_the_model_s_own(ask: Ask, asked: list[Any], model: str) -> None:
    await ask(model, IDS)

    assert asked == [IDS]


async def test_a_text_that_was_cut_inside_a_character_is_taken(ask: Ask, asked: list[Any]) -> None:
    await ask(OPENAI, [53901, 102])  # the second begins a character of three bytes

    assert asked == [["好\ufffd"]]


@pytest.mark.parametrize("wrong", [100256, 100277, 10**12, -1, True, "7", 1.0])
async def test_an_id_that_is_no_token_is_refused(ask: Ask, asked: list[Any], wrong: Any) -> None:
    error = (await ask(OPENAI, [IDS[0], [791, wrong]]))["error"]

    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "input", "invalid_value")
    assert error["message"].startswith("Invalid 'input': input 1 has ")
    assert asked == []


@pytest.mark.parametrize("value", [[], [[]], ["a", [1]], 7, None])
async def test_malformed_input_is_passed_to_engine_unchanged(ask: Ask, asked: list[Any], value: Any) -> None:
    await ask(OPENAI, value)

    assert asked == [value]


async def test_chat_request_passes_through() -> None:
    layer = TokenIdMiddleware(FakeEngine((OPENAI,)), lambda _: True)
    await layer.start()

    body = {"model": OPENAI, "messages": [{"role": "user", "content": "hi"}]}
    answer = await layer.answer(Request("/v1/chat/completions", body, "req_1"))

    assert answer.status == 200
