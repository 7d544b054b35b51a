"""Vectors of a conversation: who is asked for them, and what is said where nobody can."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from jobs.fleet.models_file import Models
from jobs.fleet.routing import Route
from tests.support.fake_engine import reply
from workers.engines.port import Answer, EngineBusy, Request, refusal
from workers.inference.model_router import ModelRouter

REQUEST = Request("/v1/chat/completions", {"model": "m"}, "r1", tenant="p", job_id="batch_1")


class Asked:
    """The model's workers, of this queue or of another."""

    def __init__(self, queue: str | Answer) -> None:
        self.queue = queue
        self.route = queue if isinstance(queue, Answer) else Route(queue, "own-name")
        self.here: list[Request] = []
        self.there: list[Request] = []

    async def find_route(self, *_: Any) -> Route | Answer:
        return self.route

    async def forward(self, queue: str, request: Request, _emit: Any = None) -> Answer:
        assert queue == self.queue
        self.there.append(request)
        return reply(request.url, request.body, "")

    async def answer(self, request: Request) -> Answer:
        self.here.append(request)
        return reply(request.url, request.body, "")


def _elsewhere(asked: Any, folder: Path, models_file: str = "", model: str = "emb") -> ModelRouter:
    settings: Any = SimpleNamespace(
        data_dir=folder, embedding_model=model, models_file=models_file, vllm_enabled=False, openai_aliases=False
    )
    return ModelRouter(SimpleNamespace(config=settings, models=Models(settings)), asked, asked, "here")  # type: ignore[arg-type]


async def test_another_workers_cache_keeps_nothing_of_a_conversation(tmp_path: Path) -> None:
    near, far = Asked("here"), Asked("there")

    for asked in (near, far):
        vectors = await _elsewhere(asked, tmp_path).embed(REQUEST, None, ["cats", "dogs"])
        assert not isinstance(vectors, Answer)
        assert len(vectors) == 2

    assert [one.body["cache"] for one in far.there] == [False]
    assert [one.body.get("cache") for one in near.here] == [None]  # no cache is before it, and it knows no such field


async def test_a_models_file_that_is_broken_is_waited_for_and_not_quoted(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("models: {secret: [")
    elsewhere = _elsewhere(Asked("there"), tmp_path, str(file))

    for asked in (elsewhere.piece_bytes(None), elsewhere.embed(REQUEST, None, ["cats"])):
        with pytest.raises(EngineBusy) as busy:
            await asked
        assert "secret" not in str(busy.value)
        assert str(file) not in str(busy.value)


async def test_a_text_is_as_long_as_the_models_files_and_its_prompt_leave_room_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 130}')
    (tmp_path / "models.yaml").write_text(
        f"""models:
  emb: {{source: {{path: {tmp_path}}}, engine: embed, engine_args: {{passage_prompt: "passage: "}}}}
"""
    )
    elsewhere = _elsewhere(Asked("there"), tmp_path, str(tmp_path / "models.yaml"))

    assert await elsewhere.piece_bytes(None) == 130 - len("passage: ") - 16
    assert await elsewhere.piece_bytes("unknown") == 512 - 16


async def test_long_context_model_is_routed_by_its_queue(tmp_path: Path) -> None:
    no = refusal(400, "It is paused.", code="model_paused")
    answers = []
    for queue in ("here", "there", no):
        asked = Asked(queue)
        answers.append((await _elsewhere(asked, tmp_path).route(REQUEST, None), len(asked.there), asked.here))

    here, there, refused = answers
    assert here == (replace(REQUEST, body={"model": "own-name"}), 0, [])
    assert (there[0] and there[0].status, *there[1:]) == (200, 1, [])
    assert refused == (no, 0, [])


async def test_refused_embedding_model_returns_refusal_without_request(tmp_path: Path) -> None:
    no = refusal(400, "It is paused.", code="model_paused")
    asked = Asked(no)

    assert await _elsewhere(asked, tmp_path).embed(REQUEST, None, ["cats"]) == no
    assert (asked.here, asked.there) == ([], [])


async def test_a_deployment_without_an_embedding_model_says_so(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("models: {talks: {source: {packaged: smollm2-135m-instruct}, engine: vllm}}")
    asked = Asked("here")

    found = await _elsewhere(asked, tmp_path, str(file), model="").embed(REQUEST, None, ["cats"])

    assert isinstance(found, Answer)
    error = msgspec.json.decode(found.body)["error"]
    assert (found.status, error["code"], error["param"]) == (400, "model_not_found", "context.embedding_model")
    assert asked.here == []


@pytest.mark.parametrize(
    ("status", "vectors"), [(200, [[1.0]]), (200, [[1.0], [1.0, 0.0]]), (200, []), (400, [[1.0], [1.0]])]
)
async def test_invalid_embedding_answer_returns_embedding_failed(
    tmp_path: Path, status: int, vectors: list[list[float]]
) -> None:
    class Odd(Asked):
        async def answer(self, _request: Request) -> Answer:
            data = [{"index": n, "embedding": vector} for n, vector in enumerate(vectors)]
            return Answer(status, msgspec.json.encode({"data": data}))

    found = await _elsewhere(Odd("here"), tmp_path).embed(REQUEST, None, ["cats", "dogs"])

    assert isinstance(found, Answer)
    assert (found.status, msgspec.json.decode(found.body)["error"]["code"]) == (502, "embedding_failed")
