"""Beside the most expensive request of each operation, and the dearest jobs of each kind, other projects go on.

Another project's small request takes at most five times as long as alone, or a second, and /livez less than a second;
its batch of one line takes at most five times as long as alone, or three seconds. What breaks a bound is measured once
more, since machines stand still now and then.
"""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import httpx2
import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

import jobs.known_kinds  # noqa: F401 (fills the table of kinds)
from api.openapi import document
from jobs.ledger import kinds
from tests.badinputs.attacks import Attack, Attacker
from tests.badinputs.expensive import (
    ABSENT,
    BODIES,
    KINDS,
    OBJECTS,
    Expensive,
    Stock,
    batch_lines,
    operations_of,
    requests_of,
)
from tests.badinputs.neighbours import Deployment, attackers
from tests.badinputs.world import at_once
from tests.support.system import ROOT, eventually, pause

_TIMES = 5
_CONNECTIONS = 12
_ATTACK_SECONDS = 1.0
_ALONE_SECONDS = 5.0
_BATCHES = 3
_JOBS_SECONDS = 240.0
_LAST_EVENTS = ("response.completed", "response.incomplete", "response.failed")
#: The least bound in seconds, by what another project does.
_LEAST: Mapping[str, float] = {"small": 1.0, "livez": 1.0, "batch": 3.0}
_SMALL: Mapping[str, str] = {"small": "/v1/batches?limit=1", "livez": "/livez"}
#: Adds a model that can be trained to one that embeds; nothing serves it.
_MODELS = """
models:
  stub-base: {source: {path: base}, engine: vllm, queue: gpu.adapters, engine_args: {enable_lora: true}}
  all-minilm-l6-v2: {source: {packaged: all-minilm-l6-v2}, engine: embed}
"""

Seconds = Mapping[str, float]
T = TypeVar("T")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("up")
    subprocess.run([sys.executable, "-m", "tests.support.tiny_llama", str(folder / "base")], cwd=ROOT, check=True)
    models = folder / "models.yaml"
    models.write_text(_MODELS)
    settings = {"NIGHTMILL_VLLM_ENABLED": "true", "NIGHTMILL_MODELS_FILE": str(models)}
    with Deployment(folder, ROOT, embeds=True, **settings) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def stock(deployment: Deployment) -> Iterator[Stock]:
    with Attacker(deployment.system.url, deployment.key).client() as client:
        stock = Stock(client)
        spare = deployment.system.cli("keys", "create", "--project", "attacker").stdout  # one that may be revoked
        stock.ids["api_key_id"] = spare.split("_")[1]
        stock.fill()
        yield stock


def attacks(stock: Stock) -> Iterator[Attack]:
    """Yield an attack by each operation, and by messages on connections that answer responses."""
    for operation, request in requests_of(document(), stock):
        yield Attack(operation, operation, partial(send_again, request))
        if operation == "POST /v1/responses":
            message = json.dumps({"type": "response.create", **json.loads(request.content)})
            yield Attack("WebSocket", "WebSocket /v1/responses", partial(send_messages, message))


def send_messages(message: str, attacker: Attacker) -> str:
    """Send a message over many WebSockets for some seconds; return the types of the last events with their counts."""
    until = time.monotonic() + _ATTACK_SECONDS
    url, headers = f"ws{attacker.url.removeprefix('http')}/v1/responses", {"Authorization": f"Bearer {attacker.key}"}

    def send(_: int) -> Counter[str]:
        answered = Counter[str]()
        while time.monotonic() < until:
            try:
                with connect(url, additional_headers=headers, max_size=None) as connection:
                    while time.monotonic() < until:
                        connection.send(message)
                        answered[_last_event(connection)] += 1
            except (WebSocketException, OSError) as error:
                answered[type(error).__name__] += 1
        return answered

    return str(dict(sum(at_once(_CONNECTIONS, send), Counter[str]())))


def _last_event(connection: ClientConnection) -> str:
    """Return the type of the event that ends an answer, or the code of an error."""
    while True:
        event = json.loads(connection.recv(timeout=60))
        if event["type"] == "error":
            return str(event["error"]["code"])
        if event["type"] in _LAST_EVENTS:
            return str(event["type"])


def send_again(request: Expensive, attacker: Attacker) -> str:
    """Send a request over many connections for some seconds; return the statuses with their counts."""
    until = time.monotonic() + _ATTACK_SECONDS

    def send(_: int) -> Counter[str]:
        answered = Counter[str]()
        with attacker.client() as client:
            while time.monotonic() < until:
                try:
                    headers = {"Content-Type": request.content_type} if request.content else {}
                    answer = client.request(request.method, request.path, content=request.content, headers=headers)
                    answered[_outcome(answer)] += 1
                except httpx2.HTTPError as error:
                    answered[type(error).__name__] += 1
        return answered

    return str(dict(sum(at_once(_CONNECTIONS, send), Counter[str]())))


def _outcome(answer: httpx2.Response) -> str:
    if answer.status_code < 400:
        return str(answer.status_code)
    error = answer.json()["error"]
    return f"{answer.status_code} {error['code']} {error['param']}"


def slowest_answers(deployment: Deployment, meanwhile: Callable[[], T]) -> tuple[Seconds, T]:
    """Return the slowest answers to another project while something goes on, and what came of that."""
    over, slowest = threading.Event(), dict.fromkeys(_SMALL, 0.0)
    failures: list[str] = []

    def ask(kind: str, path: str) -> None:
        with deployment.other() as client:
            while not over.wait(0.05):
                began = time.monotonic()
                answer = client.get(path)
                slowest[kind] = max(slowest[kind], time.monotonic() - began)
                failures.extend([f"{kind} {answer.status_code}"] if answer.status_code != 200 else [])

    threads = [threading.Thread(target=ask, args=probe, daemon=True) for probe in _SMALL.items()]
    for thread in threads:
        thread.start()
    try:
        result = meanwhile()
    finally:
        over.set()
        for thread in threads:
            thread.join(120)
    assert failures == []
    return slowest, result


def slowest_batch(deployment: Deployment) -> Seconds:
    """Return the seconds of the slowest of some batches of one line of another project, from creation to end."""
    seconds = []
    with deployment.other() as client:
        form = {"files": {"file": ("a.jsonl", batch_lines(1))}, "data": {"purpose": "batch"}}
        file_id = client.post("/v1/files", **form).raise_for_status().json()["id"]
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        for _ in range(_BATCHES):
            began = time.monotonic()
            path = f"/v1/batches/{client.post('/v1/batches', json=body).raise_for_status().json()['id']}"
            eventually(lambda path=path: client.get(path).json()["status"] == "completed", _JOBS_SECONDS, "a batch")
            seconds.append(time.monotonic() - began)
    return {"batch": max(seconds)}


def broken(seconds: Seconds, alone: Seconds) -> list[str]:
    """Name the bounds that are broken."""
    return [
        f"{kind} took {seconds[kind]:.2f} s, alone {alone[kind]:.2f} s"
        for kind in seconds
        if seconds[kind] > max(_LEAST[kind], _TIMES * alone[kind] * (kind != "livez"))
    ]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_no_request_delays_another_project(deployment: Deployment, stock: Stock) -> None:
    alone, _ = slowest_answers(deployment, lambda: pause(_ALONE_SECONDS))
    attacker, slow = Attacker(deployment.system.url, deployment.key), dict[str, list[str]]()
    with attackers() as run:
        for attack in attacks(stock):
            for _ in range(2):
                seconds, answered = slowest_answers(deployment, partial(run, attack, attacker))
                print(attack.name, answered, *(f"{kind} {took:.3f}" for kind, took in seconds.items()), flush=True)
                slow[attack.name] = broken(seconds, alone)
                if not slow[attack.name]:
                    break
    slow = {operation: found for operation, found in slow.items() if found}

    assert slow == {}


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_job_delays_another_project(deployment: Deployment, stock: Stock, kind: str) -> None:
    alone = slowest_batch(deployment)
    try:
        KINDS[kind](stock)
        pause(3)
        seconds = slowest_batch(deployment)
        if broken(seconds, alone):
            seconds = slowest_batch(deployment)
    finally:
        stop_jobs(stock)
    print(f"{kind}: batch {seconds['batch']:.2f} s, alone {alone['batch']:.2f} s")

    assert broken(seconds, alone) == []


def stop_jobs(stock: Stock) -> None:
    """Cancel all live jobs of the attacker, and wait until none is left."""

    def live() -> list[str]:
        jobs = stock.client.get("/v1/jobs", params={"limit": 100}).raise_for_status().json()["data"]
        return [job["id"] for job in jobs if job["completed_at"] is None and job["state"] not in _ENDED]

    for job_id in live():
        stock.client.post(f"/v1/jobs/{job_id}/cancel")
    eventually(lambda: not live(), _JOBS_SECONDS, "all jobs have ended", every=0.5)


_ENDED = ("completed", "failed", "cancelled", "expired")


def test_every_operation_and_kind_has_its_most_expensive_request() -> None:
    operations = list(operations_of(document()))
    assert set(BODIES) == {
        f"{route.method} {route.path}" for route, operation in operations if "requestBody" in operation
    }
    assert {name for route, _ in operations for name in route.parameters} == ABSENT | OBJECTS
    assert set(KINDS) == set(kinds.rows())
