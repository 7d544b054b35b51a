"""A LangChain application on a whole deployment: embeddings with the library's defaults, a search, and a chat.

LangChain tokenizes by tiktoken, which fetches its tables from the network. Here it finds them in its cache, where
those of bpe-openai are put; tiktoken checks their digest.
"""

import gzip
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import bpe_openai
import httpx2
import pytest
from openai import OpenAI

from tests.sdk.environments import HERE, NotMade, command
from tests.support.services import need
from tests.support.system import StubEngine, System, eventually
from workers.engines.model_folders import MINILM

pytestmark = [pytest.mark.verify, pytest.mark.timeout(300)]

ENVIRONMENT = "clients"
ALIAS, CHAT = "text-embedding-3-small", "stub-model"
QUESTION = "Who pays for trips?"
TEXTS = {
    "cats.txt": "Cats sleep for sixteen hours a day.",
    "travel.txt": "Travel is paid by the finance department within ten days.",
    "leave.txt": "Every employee has thirty days of leave in a year.",
}
_TABLE = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"


@dataclass(frozen=True, slots=True)
class Flow:
    """A deployment, and what the application said of it."""

    client: OpenAI
    said: dict[str, Any]


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    folder = tmp_path_factory.mktemp("langchain")
    try:
        [python, *_] = command(ENVIRONMENT)
    except NotMade as error:
        need(f"the environment of {ENVIRONMENT}", error)
    model = {"source": {"packaged": MINILM}, "engine": "embed", "aliases": [ALIAS], "engine_args": {"dtype": "float32"}}
    (folder / "models.yaml").write_text(json.dumps({"models": {MINILM: model}}))
    with StubEngine(folder, CHAT) as chat:
        given = {"NIGHTMILL_VLLM_ENABLED": "false", "NIGHTMILL_ENGINE_URLS": chat.url}
        system = System(folder, NIGHTMILL_MODELS_FILE=str(folder / "models.yaml"), **given)
        try:
            system.start()
            eventually(lambda: _alive(system) >= {"gpu.embed", "gpu.generate", "cpu.ingest"}, 120, "all models")
            with OpenAI(base_url=f"{system.url}/v1", api_key=system.api_key, timeout=60) as client:
                yield Flow(client, _said(python, folder, system))
        finally:
            system.destroy()


def _alive(system: System) -> set[str]:
    with suppress(httpx2.HTTPError):
        return set(httpx2.get(f"{system.url}/statusz", timeout=30).json()["workers"])
    return set()


def _said(python: str, folder: Path, system: System) -> dict[str, Any]:
    cache = folder / "tiktoken"
    cache.mkdir()
    table = gzip.decompress((files("bpe_openai.data") / "cl100k_base.tiktoken.gz").read_bytes())
    (cache / hashlib.sha1(_TABLE.encode()).hexdigest()).write_bytes(table)
    facts = {"url": system.url, "key": system.api_key, "chat": CHAT, "own": MINILM, "alias": ALIAS}
    facts |= {"texts": TEXTS, "question": QUESTION}
    done = subprocess.run(
        [python, str(HERE / "langchain_flow.py"), json.dumps(facts)],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"TIKTOKEN_CACHE_DIR": str(cache)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("way", ["by defaults", "by the model's own name"])
def test_embeddings_are_those_of_the_texts(flow: Flow, way: str) -> None:
    plain, found = flow.said["plain"], flow.said[way]

    assert len(found) == len(TEXTS)
    for one, other in zip(plain, found, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_its_own_vector_store_finds_the_text_in_other_words(flow: Flow) -> None:
    assert flow.said["nearest"] == "travel.txt"


def test_a_vector_store_of_the_server_finds_it_too(flow: Flow) -> None:
    assert flow.said["searched"] == "travel.txt"


def test_a_chain_is_answered_whole_and_as_a_stream(flow: Flow) -> None:
    assert flow.said["answer"].startswith("echo ")
    assert "".join(flow.said["streamed"]) == flow.said["answer"]
    assert len(flow.said["streamed"]) > 1


def test_lines_of_a_batch_take_the_same_token_ids(flow: Flow) -> None:
    ids = bpe_openai.get_encoding("cl100k_base").encode(TEXTS["travel.txt"])
    inputs = {"ids": [ids], "text": [TEXTS["travel.txt"]], "wrong": [[100256]]}
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/embeddings", "body": {"model": ALIAS, "input": value}}
        for name, value in inputs.items()
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = flow.client.files.create(file=("input.jsonl", content), purpose="batch")
    made = flow.client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")

    eventually(lambda: flow.client.batches.retrieve(made.id).status == "completed", 60, "the batch")

    batch = flow.client.batches.retrieve(made.id)
    vectors = _bodies(flow, batch.output_file_id)
    [refused] = _bodies(flow, batch.error_file_id).values()
    assert vectors["ids"]["data"][0]["embedding"] == pytest.approx(vectors["text"]["data"][0]["embedding"], abs=1e-4)
    assert (refused["error"]["param"], refused["error"]["code"]) == ("input", "invalid_value")


def _bodies(flow: Flow, file_id: str | None) -> dict[str, Any]:
    lines = map(json.loads, flow.client.files.content(str(file_id)).text.splitlines())
    return {line["custom_id"]: line["response"]["body"] for line in lines}
