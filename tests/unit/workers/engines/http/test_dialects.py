"""Requests to an embedding server have its prompts before the texts, without the fields that only Nightmill knows."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from jobs.fleet.models_file import Registry
from jobs.requests.embedding_prompts import Prompts, prompts_of
from jobs.settings import Settings
from tests.support.scripted_server import Server, engine_of, says
from workers.engines.build_engines import build
from workers.engines.encoders.batching import Unacceptable
from workers.engines.http.dialects import for_server
from workers.engines.http.endpoints import Endpoint
from workers.engines.port import Request

URL = "/v1/embeddings"
GIVEN = prompts_of({"query_prompt": "q: ", "passage_prompt": "p: "})

FORWARDED: dict[str, tuple[Prompts | None, dict[str, Any], dict[str, Any]]] = {
    "nothing of ours": (None, {"input": "a"}, {"input": "a"}),
    "a type that is the server's": (None, {"input": "a", "input_type": "query"}, {"input": "a", "input_type": "query"}),
    "raw, without prompts": (None, {"input": ["a"], "input_type": "raw"}, {"input": ["a"]}),
    "raw, with prompts": (GIVEN, {"input": ["a"], "input_type": "raw"}, {"input": ["a"]}),
    "a query": (GIVEN, {"input": "a", "input_type": "query"}, {"input": ["q: a"]}),
    "passages": (GIVEN, {"input": ["a", "b"], "input_type": "passage"}, {"input": ["p: a", "p: b"]}),
    "neither": (GIVEN, {"input": ["a"]}, {"input": ["a"]}),
    "neither, with a prompt for all": (prompts_of({"prompt": "x: "}), {"input": ["a"]}, {"input": ["x: a"]}),
    "token ids before which nothing stands": (GIVEN, {"input": [[1], [2]]}, {"input": [[1], [2]]}),
    "to be cut off": (None, {"input": "a", "truncate": True}, {"input": "a", "truncate_prompt_tokens": -1}),
    "to be cut off at a length": (
        None, {"input": [], "truncate": True, "truncate_prompt_tokens": 9}, {"input": [], "truncate_prompt_tokens": 9},
    ),
    "not to be cut off": (None, {"input": "a", "truncate": False, "truncate_prompt_tokens": 9}, {"input": "a"}),
    "null": (GIVEN, {"input": "a", "truncate": None, "input_type": None}, {"input": "a"}),
}  # fmt: skip


@pytest.mark.parametrize("case", FORWARDED)
def test_request_is_translated_for_server(case: str) -> None:
    prompts, body, expected = FORWARDED[case]
    before = msgspec.json.encode(body)

    assert for_server(Request(URL, body, "r"), prompts).body == expected
    assert msgspec.json.encode(body) == before  # it may have to be sent again


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": [[1], [2]], "input_type": "query"}, "input"),
        ({"input": [1, 2], "input_type": "query"}, "input"),
        ({"input": ["a", ""], "input_type": "query"}, "input"),
        ({"input": None, "input_type": "query"}, "input"),
        ({"input": "a", "input_type": "poem"}, "input_type"),
        ({"input": "a", "input_type": 1}, "input_type"),
        ({"input": "a", "truncate": "END"}, "truncate"),
    ],
)
def test_unsupported_request_is_refused_with_param(body: dict[str, Any], param: str) -> None:
    with pytest.raises(Unacceptable) as caught:
        for_server(Request(URL, body, "r"), GIVEN)

    assert msgspec.json.decode(caught.value.answer.body)["error"]["param"] == param


def vectors(count: int) -> bytes:
    return msgspec.json.encode({"data": [{"index": n, "embedding": [1.0]} for n in range(count)]})


async def test_models_file_s_prompts_reach_the_server(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    prompts = '{query_prompt: "q: ", passage_prompt: "p: "}'
    source = f"{{urls: ['{server.url}/v1'], model: upstream}}"
    file.write_text(f"models:\n  e:\n    source: {source}\n    engine: http\n    engine_args: {prompts}\n")
    server.script = says(200, vectors(1))
    engine = build(Settings(data_dir=tmp_path), Registry.read(file), "gpu.generate")
    await engine.start()

    answers = await asyncio.gather(
        *(
            engine.answer(Request(URL, {"model": "e", "input": "a", "input_type": one}, "r"))
            for one in ("query", "poem")
        )
    )
    await engine.close()

    assert [answer.status for answer in answers] == [200, 400]
    assert server.asked == [{"model": "upstream", "input": ["q: a"]}]


async def test_context_length_error_of_server_is_forwarded(server: Server) -> None:
    said = {"message": "This model's maximum context length is 8 tokens.", "type": "BadRequestError", "code": 400}

    async def strict(request: web.BaseRequest) -> web.Response:
        cut = server.asked[-1].get("truncate_prompt_tokens") == -1
        return web.Response(status=200, body=vectors(1)) if cut else web.json_response({"error": said}, status=400)

    server.script = strict
    async with engine_of(Endpoint(server.url)) as engine:
        refused = await engine.answer(Request(URL, {"model": "m", "input": "long"}, "r"))
        cut = await engine.answer(Request(URL, {"model": "m", "input": "long", "truncate": True}, "r"))

    assert (refused.status, cut.status) == (400, 200)
    assert msgspec.json.decode(refused.body)["error"]["message"] == said["message"]
