"""The deployment of a dose: `up`, a stub engine, and a client that remembers every answer.

Site     the deployment; `posts` of small batches, each under a key of its own; `jobs` as the API lists them
Answer   the outcome of one POST
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.chaos.doses.dose import Given
from tests.support import stub_engine
from tests.support.system import EMBED_MODEL, MODEL, StubEngine, System, pause, wait_for

CHAT = "/v1/chat/completions"
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """To one POST: its status, 0 where the connection broke, and how long it took."""

    key: str
    status: int
    seconds: float
    job: str = ""
    retry_after: str = ""
    told: str = ""


def line(name: str, prompt: str, model: str = MODEL) -> bytes:
    body = {"model": model, "max_tokens": 16, "messages": [{"role": "user", "content": prompt}]}
    return json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": body}).encode() + b"\n"


@dataclass(slots=True)
class Site:
    """A deployment of a dose."""

    system: System
    engine: StubEngine
    http: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        headers = {"Authorization": f"Bearer {self.system.api_key}"}
        limits = httpx2.Limits(max_connections=200)
        self.http = httpx2.Client(headers=headers, timeout=60, limits=limits)

    def url(self, path: str, port: int = 0) -> str:
        return f"http://127.0.0.1:{port or self.system.port}/v1/{path}"

    def upload(self, content: bytes, name: str = "in.jsonl") -> str:
        files = {"file": (name, content)}
        made = self.http.post(self.url("files"), files=files, data={"purpose": "batch"})
        made.raise_for_status()
        return str(made.json()["id"])

    def post(self, path: str, body: dict[str, Any], key: str, port: int = 0, seconds: float = 60) -> Answer:
        began = time.monotonic()
        try:
            said = self.http.post(self.url(path, port), json=body, headers={"Idempotency-Key": key}, timeout=seconds)
        except httpx2.HTTPError as error:
            return Answer(key, 0, time.monotonic() - began, told=f"{type(error).__name__} {error}")
        took, job = time.monotonic() - began, ""
        if said.status_code == 200:
            job = str(said.json()["id"])
        return Answer(key, said.status_code, took, job, said.headers.get("retry-after", ""), said.text[:300])

    def batch(self, file_id: str, key: str, port: int = 0, seconds: float = 60) -> Answer:
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
        return self.post("batches", body, key, port, seconds)

    def get(self, path: str, **parameters: Any) -> Any:
        """Patiently: what has just come back may answer 503 for a while."""
        until = time.monotonic() + _PATIENCE
        while True:
            said = self.http.get(self.url(path), params=parameters)
            if said.status_code != 503 or time.monotonic() > until:
                said.raise_for_status()
                return said.json()
            pause(0.5)

    def jobs(self, **parameters: Any) -> list[dict[str, Any]]:
        """Return all jobs of the project, page by page."""
        found: list[dict[str, Any]] = []
        while True:
            after = {"after": found[-1]["id"]} if found else {}
            page = self.get("jobs", limit=100, **after, **parameters)
            found += page["data"]
            if not page["has_more"]:
                return found

    def open_jobs(self) -> int:
        states = "queued", "running", "finishing", "expiring", "cancelling"
        return sum(len(self.get("jobs", limit=1, state=state)["data"]) for state in states)

    def await_ended(self, seconds: float) -> bool:
        """Return whether every job ends in time."""
        try:
            wait_for(lambda: not self.open_jobs(), seconds, "all ended", every=0.5)
        except TimeoutError:
            return False
        return True

    def prompts(self) -> list[str]:
        return stub_engine.prompts(self.engine.log)

    def await_web(self, port: int, seconds: float = 60) -> None:
        wait_for(lambda: self._alive(port), seconds, f"web answers on {port}")

    def _alive(self, port: int) -> bool:
        try:
            return httpx2.get(f"http://127.0.0.1:{port}/livez", timeout=2).status_code == 200
        except httpx2.HTTPError:
            return False


@contextmanager
def site(given: Given, delay_ms: float = 0, rivals: bool = False, **environment: str) -> Iterator[Site]:
    with ExitStack() as stack:
        engine = stack.enter_context(StubEngine(given.folder, MODEL, delay_ms=delay_ms))
        embed = stack.enter_context(StubEngine(given.folder, EMBED_MODEL))
        system = System(given.folder, engine_url=engine.url, embed_url=embed.url, rivals=rivals, **environment)
        stack.callback(system.destroy)
        system.start(180)
        made = Site(system, engine)
        stack.callback(made.http.close)
        yield made


@dataclass(slots=True)
class Posting:
    """Creates at a steady rate, each by a thread of its own, so that one that hangs delays no other."""

    site: Site
    file_id: str
    rate: float
    answers: list[Answer] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    @contextmanager
    def going_on(self) -> Iterator["Posting"]:
        feeder = threading.Thread(target=self._feed, daemon=True)
        feeder.start()
        try:
            yield self
        finally:
            self._stop.set()
            feeder.join()
            for thread in self._threads:
                thread.join(90)

    def _feed(self) -> None:
        began, count = time.monotonic(), 0
        while not self._stop.is_set():
            thread = threading.Thread(target=self._one, args=(count,), daemon=True)
            thread.start()
            self._threads.append(thread)
            count += 1
            pause(max(0.0, began + count / self.rate - time.monotonic()))

    def _one(self, count: int) -> None:
        ports = self.site.system.ports
        self.answers.append(self.site.batch(self.file_id, f"post-{count:06d}", ports[count % len(ports)]))
