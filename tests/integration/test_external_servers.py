"""A whole deployment with an internal and an external server: which prompts reach the external one, by every way."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from jobs.fleet.models_file import Registry
from tests.support import stub_engine
from tests.support.fake_engine import FakeEngine
from tests.support.interactive_api import MODEL, Shop
from tests.support.stub_engine import prompts
from tests.support.system import SCALED, System, eventually
from workers.engines.http.endpoints import Endpoint
from workers.engines.http.http_engine import HttpEngine
from workers.engines.port import Engine
from workers.engines.router import Router

pytestmark = pytest.mark.timeout(300)

#: `0.0.0.0` is this machine, and no private address: the server there passes for an external one.
_MODELS_FILE = """
models:
  near: {source: {urls: ["INSIDE"]}, engine: http}
  near-embed: {source: {urls: ["INSIDE"]}, engine: http, queue: gpu.embed, endpoints: [/v1/embeddings]}
  far-embed: {source: {urls: ["OUTSIDE"]}, engine: http, queue: gpu.embed, endpoints: [/v1/embeddings]}
  far-rank: {source: {urls: ["OUTSIDE"]}, engine: http, queue: gpu.embed, endpoints: [/v1/rerank]}
"""
ANY: str = "whatever"  # a name that only the server has that takes any
LONG: Any = [{"role": "user", "content": f"{n} " * 30} for n in range(6)]


@dataclass
class Scene:
    """The logs of the two servers, and a client of a project without and of one with the permission."""

    inside: Path
    outside: Path
    strict: OpenAI
    free: OpenAI


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("external")
    inside, outside = folder / "inside.log", folder / "outside.log"
    with (
        stub_engine.running(inside, "--models", "near,near-embed") as near,
        stub_engine.running(outside, "--models", "*") as other,
    ):
        far = other.replace("127.0.0.1", "0.0.0.0")
        models = folder / "models.yaml"
        models.write_text(_MODELS_FILE.replace("INSIDE", near).replace("OUTSIDE", far))
        given = {**SCALED, "NIGHTMILL_VLLM_ENABLED": "false", "NIGHTMILL_ENGINE_URLS": far}
        given |= {"NIGHTMILL_MODELS_FILE": str(models), "NIGHTMILL_REWRITE_MODEL": ANY}
        system = System(folder, **given)
        try:
            system.start()
            eventually(lambda: "gpu.embed" in _workers(system), 60, "the embedding worker is there")
            with _client(system, "--no-external") as strict, _client(system, "--allow-external") as free:
                yield Scene(inside, outside, strict, free)
        finally:
            system.destroy()


def _client(system: System, permission: str) -> OpenAI:
    made = system.cli("keys", "create", "--project", permission, permission)
    return OpenAI(base_url=f"{system.url}/v1", api_key=made.stdout.strip(), timeout=60, max_retries=2)


def _workers(system: System) -> set[str]:
    return set(httpx2.get(f"{system.url}/statusz", timeout=5).json()["workers"])


def _batch(client: OpenAI, model: str) -> Any:
    lines = [
        {
            "custom_id": f"r{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": f"secret {n}"}]},
        }
        for n in range(8)
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    ended = {"completed", "failed", "expired", "cancelled"}
    eventually(lambda: client.batches.retrieve(batch.id).status in ended, 60, "the batch ends")
    return client.batches.retrieve(batch.id)


def _store(client: OpenAI) -> str:
    store = client.vector_stores.create(extra_body={"embedding_model": "near-embed"}).id
    client.vector_stores.files.upload_and_poll(vector_store_id=store, file=("a.txt", b"The sea follows the moon."))
    return store


def _search(client: OpenAI, **fields: Any) -> Any:
    return client.vector_stores.search(_store(client), query="secret moon", **fields)


def _chat(client: OpenAI, model: str = ANY, messages: Any = None, **extra: Any) -> Any:
    messages = messages or [{"role": "user", "content": "secret"}]
    return client.chat.completions.create(model=model, messages=messages, max_tokens=10, extra_body=extra)


def _stream(client: OpenAI) -> Any:
    return list(client.chat.completions.create(model=ANY, messages=LONG[:1], stream=True))


#: By what leads out: what is asked.
WAYS: dict[str, Callable[[OpenAI], Any]] = {
    "batch": lambda client: _batch(client, ANY),
    "chat": _chat,
    "stream": _stream,
    "completion": lambda client: client.completions.create(model=ANY, prompt="secret"),
    "response": lambda client: client.responses.create(model=ANY, input="secret"),
    "embeddings": lambda client: client.embeddings.create(model="far-embed", input="secret"),
    "re-ranking": lambda client: _search(client, ranking_options={"ranker": "far-rank"}),
    "rewriting": lambda client: _search(client, rewrite_query=True),
    "summaries": lambda client: _chat(
        client, ANY, LONG, context={"strategy": "summarize", "max_tokens": 150, "summary_tokens": 16}
    ),
    "a model that takes more": lambda client: _chat(
        client, "near", LONG, context={"route_long": ANY, "max_tokens": 60}
    ),
    "memory": lambda client: _chat(
        client, "near", LONG, context={"strategy": "memory", "embedding_model": "far-embed", "max_tokens": 60}
    ),
}


@pytest.mark.verify
@pytest.mark.parametrize("way", WAYS)
def test_prompts_leave_with_the_permission_alone(scene: Scene, way: str) -> None:
    before = len(prompts(scene.outside))
    with suppress(openai.APIStatusError):
        WAYS[way](scene.strict)
    strict = prompts(scene.outside)[before:]
    with suppress(openai.APIStatusError):
        WAYS[way](scene.free)
    free = prompts(scene.outside)[before:]

    assert (strict, bool(free)) == ([], True)


@pytest.mark.verify
def test_model_on_internal_server_never_reaches_external_server(scene: Scene) -> None:
    before = len(prompts(scene.inside)), len(prompts(scene.outside))
    for client in (scene.strict, scene.free):
        batch = _batch(client, "near")
        assert (batch.status, batch.request_counts.completed) == ("completed", 8)

    assert (len(prompts(scene.inside)) - before[0], len(prompts(scene.outside)) - before[1]) == (16, 0)


def test_worker_refuses_client_if_api_takes_external_model_for_internal(
    make_shop: Callable[..., Shop], tmp_path: Path
) -> None:
    """The models file that the API reads calls the model internal."""
    log = tmp_path / "outside.log"
    with stub_engine.running(log, "--models", MODEL) as url:

        def around(fake: FakeEngine) -> Engine:
            outside = HttpEngine([Endpoint(url, external=True)], timeout=5.0)
            return Router([outside], Registry.read(tmp_path / "models.yaml"))

        shop = make_shop(around=around)
        asked = {"model": MODEL, "messages": LONG[:1]}
        with shop.open():
            for stream in (False, True):
                with pytest.raises(openai.PermissionDeniedError) as refused:
                    shop.client.chat.completions.create(**asked, stream=stream)
                assert (refused.value.code, refused.value.param) == ("external_model_not_allowed", "model")

    assert prompts(log) == []
