"""Vectors of a conversation: who is asked for them, and what is said where nobody can."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.registry import Models
from workers.elsewhere import Elsewhere
from workers.engines.fake import reply
from workers.engines.port import Answer, EngineBusy, Request

REQUEST = Request("/v1/chat/completions", {"model": "m"}, "r1", tenant="p", job_id="batch_1")


class Asked:
    """The model's workers, of this queue or of another."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.here: list[Request] = []
        self.there: list[Request] = []

    async def place(self, *_: Any) -> str:
        return self.queue

    async def ask(self, queue: str, request: Request, _emit: Any = None) -> Answer:
        assert queue == self.queue
        self.there.append(request)
        return reply(request.url, request.body, "")

    async def answer(self, request: Request) -> Answer:
        self.here.append(request)
        return reply(request.url, request.body, "")


def _elsewhere(asked: Any, folder: Path, models_file: str = "") -> Elsewhere:
    settings: Any = SimpleNamespace(data_dir=folder, embedding_model="emb", models_file=models_file, vllm_enabled=False)
    return Elsewhere(SimpleNamespace(config=settings, models=Models(settings)), asked, asked, "here")  # type: ignore[arg-type]


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
