"""Prompts and answers stand only in the files that they belong to, keys nowhere; nothing calls home.

One deployment runs a batch whose lines carry a word that exists nowhere else, and brings files into vector stores that
have others. Afterwards everything it has written, but for the input and the results themselves, is searched for them.
"""

import base64
import json
import os
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import InternalServerError, OpenAI

from tests.support.receiver import Receiver
from tests.support.system import EMBED_MODEL, MODEL, ROOT, StubEngine, System, eventually, watched
from tests.unit.workers.retrieval.parsing import samples

pytestmark = [pytest.mark.verify, pytest.mark.timeout(240)]
WORD = "zq7-canary-quagga-5519"
#: Of an interactive client: what it asks passes through Redis, whose own file has it for a while.
ASKED = "zq8-canary-dodo-7731"
#: Of a document that is never looked for, and of one that is found: an answer with its text passes through Redis too.
DOCUMENT, FOUND = "zq1-canary-axolotl-2096", "zq2-canary-kakapo-8815"
QUERY, ATTRIBUTE = "zq3-canary-quokka-6640", "zq4-canary-numbat-1327"
#: Where prompts, answers and documents are at home, and where the operator's own key is.
AT_HOME = ("files", "jobs", "vectors")
DATABASE = "nightmill.db"
KEY_FILES = ("run.json", "operator.key")


@dataclass(frozen=True, slots=True)
class Scene:
    """A deployment that has run its batch."""

    system: System
    calls: Path
    answers: tuple[str, ...]
    said: str  # to the client who waited
    secret: str

    def written(self) -> Iterator[Path]:
        """Everything in the data folder but inputs and results."""
        for path in self.system.data.rglob("*"):
            if path.is_file() and path.relative_to(self.system.data).parts[0] not in AT_HOME:
                yield path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("privacy")
    calls = folder / "calls.log"
    environment = {**watched(calls), "NIGHTMILL_LOG_LEVEL": "DEBUG"}
    with (
        StubEngine(folder, MODEL, delay_ms=1) as engine,
        StubEngine(folder, EMBED_MODEL) as embedder,
        Receiver() as receiver,
    ):
        system = System(folder, engine_url=engine.url, embed_url=embedder.url, **environment)
        try:
            system.start()
            client = OpenAI(base_url=f"{system.url}/v1", api_key=system.api_key)
            endpoint = client.webhooks.create(name="w", url=receiver.url(), event_types=["batch.completed"])
            answers = _run(client, folder)
            _bring_in(client)
            _search(client)
            eventually(lambda: receiver.requests, 30, "the webhook has come")
            yield Scene(system, calls, answers, _chat(client), str(endpoint.signing_secret))
        finally:
            system.destroy()


def _run(client: OpenAI, folder: Path) -> tuple[str, ...]:
    """Run a batch of good, refused and broken lines; return the texts of its answers."""
    prompts = [f"{WORD} number {n}" for n in range(40)] + [f"!500 {WORD}", f"!html {WORD}", f"!reset {WORD}"]
    path = folder / "in.jsonl"
    with path.open("w") as handle:
        for number, prompt in enumerate(prompts):
            body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}
            line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            handle.write(json.dumps(line) + "\n")
    with path.open("rb") as handle:
        file = client.files.create(file=handle, purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    eventually(lambda: client.batches.retrieve(batch.id).status == "completed", 120, "the batch is done")
    done = client.batches.retrieve(batch.id)
    assert done.output_file_id
    lines = [json.loads(line) for line in client.files.content(done.output_file_id).content.splitlines()]
    texts = [line["response"]["body"]["choices"][0]["message"]["content"] for line in lines]
    texts += [_background(client, f"{WORD} later"), _background(client, f"!500 {WORD} later")]
    return tuple(text for text in texts if len(text) > 20)


def _bring_in(client: OpenAI) -> None:
    """Good files, damaged ones, and texts on which the engine breaks, with attributes."""
    texts: list[tuple[str, bytes]] = [
        ("note.txt", f"A note on {DOCUMENT}.".encode()),
        ("page.html", f"<html><body><p>A page on {DOCUMENT}.</p></body></html>".encode()),
        ("paper.pdf", samples.pdf([[f"A paper on {DOCUMENT}"]])),
        ("damaged.pdf", b"%PDF-1.7\n" + DOCUMENT.encode()),
        ("damaged.docx", b"PK\x03\x04" + DOCUMENT.encode()),
        ("broken.json", f'{{"{DOCUMENT}": '.encode()),
        ("refused.txt", f"!500 {DOCUMENT}".encode()),
        ("garbled.txt", f"!html {DOCUMENT}".encode()),
    ]
    files = [client.files.create(file=text, purpose="user_data").id for text in texts]
    store = client.vector_stores.create(name="never searched").id
    done = client.vector_stores.file_batches.create_and_poll(store, file_ids=files, attributes={"of": ATTRIBUTE})
    assert (done.status, done.file_counts.in_progress) == ("completed", 0)
    assert min(done.file_counts.completed, done.file_counts.failed) > 1, done.file_counts
    client.vector_stores.files.update(files[0], vector_store_id=store, attributes={"now": ATTRIBUTE})


def _search(client: OpenAI) -> None:
    """Create a store, and search until its file is found."""
    store = client.vector_stores.create(name="searched").id
    client.vector_stores.files.upload_and_poll(vector_store_id=store, file=("found.txt", FOUND.encode()))
    others: Any = {"type": "ne", "key": "of", "value": QUERY}
    [hit, *_] = client.vector_stores.search(store, query=f"{FOUND} {QUERY}", filters=others)
    assert FOUND in hit.content[0].text
    with pytest.raises(InternalServerError):
        client.with_options(max_retries=0).vector_stores.search(store, query=f"!500 {QUERY}")


def _background(client: OpenAI, prompt: str) -> str:
    """Return the text of a background response, empty where it fails."""
    made = client.responses.create(model=MODEL, input=prompt, background=True)
    waits = {"queued", "in_progress"}
    eventually(lambda: client.responses.retrieve(made.id).status not in waits, 60, "the response is there")
    return client.responses.retrieve(made.id).output_text


def _chat(client: OpenAI) -> str:
    """Return what an interactive client received, whole and as a stream."""
    messages: Any = [{"role": "user", "content": ASKED}]
    whole = client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content
    pieces = client.chat.completions.create(model=MODEL, messages=messages, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole
    assert whole
    assert client.responses.create(model=MODEL, input=ASKED).output_text == whole
    stored = client.chat.completions.create(model=MODEL, messages=messages, store=True)
    assert stored.choices[0].message.content == whole
    assert list(client.chat.completions.create(model=MODEL, messages=messages, store=True, stream=True))
    assert len(list(client.chat.completions.list())) == 2
    return whole


def test_interactive_prompt_and_answer_are_only_in_broker_file(scene: Scene) -> None:
    words = (ASKED.encode(), scene.said.encode())

    found = {path for path in scene.written() if any(word in path.read_bytes() for word in words)}

    assert {path.relative_to(scene.system.data).parts[0] for path in found} <= {"broker"}


def test_prompts_and_answers_are_nowhere_but_in_their_files(scene: Scene) -> None:
    told = {WORD, *scene.answers}
    assert len(told) > 20

    found = [(path.name, word) for path in scene.written() for word in told if word.encode() in path.read_bytes()]

    assert found == []


def test_a_documents_text_is_nowhere_but_with_documents_and_vectors(scene: Scene) -> None:
    found = [path.name for path in scene.written() if DOCUMENT.encode() in path.read_bytes()]

    assert found == []


def test_query_and_its_hits_are_only_in_broker_file(scene: Scene) -> None:
    words = (QUERY.encode(), FOUND.encode())

    found = {path for path in scene.written() if any(word in path.read_bytes() for word in words)}

    assert {path.relative_to(scene.system.data).parts[0] for path in found} == {"broker"}


def test_attributes_are_with_their_file_alone(scene: Scene) -> None:
    elsewhere = [
        path.name
        for path in scene.written()
        if not path.name.startswith(DATABASE) and ATTRIBUTE.encode() in path.read_bytes()
    ]

    assert elsewhere == []
    assert _tables_with(scene.system.data / DATABASE, ATTRIBUTE) == {"vector_store_file"}


def _tables_with(path: Path, word: str) -> set[str]:
    """Return the tables with a row that contains this word."""
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = ((name, row) for name in names for row in database.execute(f'SELECT * FROM "{name}"'))
        return {name for name, row in rows if word in repr(row)}
    finally:
        database.close()


def test_search_for_texts_covers_every_place_of_data(scene: Scene) -> None:
    names = {path.name for path in scene.written()}

    assert {"nightmill.db", "gpu.log", "cpu.log", "web.log", "io.log", "dispatcher.log"} <= names
    assert any("aof" in name for name in names), "the broker's own file"
    inputs = [path for path in scene.system.data.joinpath("files").rglob("*") if path.is_file()]
    assert any(WORD.encode() in path.read_bytes() for path in inputs)
    assert any(DOCUMENT.encode() in path.read_bytes() for path in inputs if path.suffix == ".json")
    vectors = [path for path in scene.system.data.joinpath("vectors").rglob("*") if path.is_file()]
    assert any(DOCUMENT.encode() in path.read_bytes() for path in vectors)
    assert "embed.log" in names


def test_keys_and_secrets_are_in_no_log_and_in_no_message(scene: Scene) -> None:
    secret = scene.secret.removeprefix("whsec_").encode()
    logs = [path for path in scene.written() if path.suffix == ".log" or "aof" in path.name]

    found = [
        path.name
        for path in (*logs, scene.system.data.parent / "up.out")
        if scene.system.api_key.encode() in path.read_bytes() or secret in path.read_bytes()
    ]
    holders = [path.name for path in scene.written() if scene.system.api_key.encode() in path.read_bytes()]

    assert found == []
    assert sorted(holders) == sorted(KEY_FILES)


def test_metrics_and_flower_show_neither(scene: Scene) -> None:
    run = scene.system.run_file()
    password = (scene.system.data / "flower.password").read_text().strip()
    request = urllib.request.Request(f"{run['flower_url'].rstrip('/')}/api/tasks?limit=1000")
    request.add_header("Authorization", "Basic " + base64.b64encode(f"nightmill:{password}".encode()).decode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        tasks: dict[str, Any] = json.load(answer)
    with urllib.request.urlopen(f"{scene.system.url}/metrics", timeout=30) as answer:
        metrics = answer.read().decode()

    assert {task["name"] for task in tasks.values()} >= {"plan", "run"}
    for shown in (json.dumps(tasks), metrics):
        assert WORD not in shown
        assert not any(text in shown for text in scene.answers)


def test_nothing_calls_home(scene: Scene) -> None:
    assert scene.calls.read_text() == ""


BLOCKING = "import socket; socket.create_connection(('{host}', 9), 0.1)"
_RUN = """
import asyncio, socket, {loop}
async def call():
    async with asyncio.timeout(0.5):
        {how}
{loop}.run(call())
"""
WAYS = {
    "open_connection": "await asyncio.open_connection('{host}', 9)",
    "getaddrinfo": "await asyncio.get_running_loop().getaddrinfo('{host}', 9)",
    "sock_connect": "s = socket.socket(); s.setblocking(False)\n        "
    "await asyncio.get_running_loop().sock_connect(s, ('{host}', 9))",
    "aiohttp": "import aiohttp\n        await aiohttp.ClientSession().get('http://{host}:9/')",
}


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(BLOCKING, id="blocking"),
        *(
            pytest.param(_RUN.replace("{loop}", loop).replace("{how}", how), id=f"{loop}-{way}")
            for loop in ("asyncio", "uvloop")
            for way, how in WAYS.items()
        ),
    ],
)
def test_a_call_outside_would_be_heard(tmp_path: Path, script: str, host: str) -> None:
    calls = tmp_path / "calls.log"
    environment = {"PYTHONPATH": str(ROOT / "tests" / "support" / "watch"), "NIGHTMILL_TEST_CONNECTIONS": str(calls)}
    command = [sys.executable, "-c", script.replace("{host}", host)]

    subprocess.run(command, env={**os.environ, **environment}, check=False, capture_output=True)

    assert host in calls.read_text()


def test_a_call_within_is_not_noted(tmp_path: Path) -> None:
    calls = tmp_path / "calls.log"
    environment = {"PYTHONPATH": str(ROOT / "tests" / "support" / "watch"), "NIGHTMILL_TEST_CONNECTIONS": str(calls)}
    for script in (BLOCKING, *(_RUN.replace("{loop}", "uvloop").replace("{how}", how) for how in WAYS.values())):
        command = [sys.executable, "-c", script.replace("{host}", "127.0.0.1")]
        subprocess.run(command, env={**os.environ, **environment}, check=False, capture_output=True)

    assert not calls.exists()
