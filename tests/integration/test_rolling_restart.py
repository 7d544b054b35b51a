"""Every API process and every worker is restarted by SIGTERM under load, one after the other: no client notices.

    clients ──▶ the next of the API processes whose /readyz answers 200 ──▶ web | web2 ──▶ gpu | gpu2 ──▶ stub engine

The clients are plain HTTP: they keep connections open, and ask nothing twice.
"""

import itertools
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from jobs.db.engine import Database
from jobs.fleet import workers
from tests.support.stub_engine import TRICKLE
from tests.support.system import EMBED_MODEL, MODEL, StubEngine, System, eventually, pause

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

_REQUESTS = 500
_CLIENTS = 6
_WORDS = 12  # of a stream, five a second
_LOOK_SECONDS = 0.25
_NOTICE_SECONDS = "6"  # a busy machine looks late


@dataclass(eq=False)
class Balancer:
    """Send requests to the processes in turn that say they are ready; look at each of them all the time."""

    ports: tuple[int, ...]
    ready: tuple[int, ...] = ()
    _turn: Iterator[int] = field(default_factory=itertools.count)
    _stop: threading.Event = field(default_factory=threading.Event)

    def next_url(self) -> str:
        ready = self.ready
        if not ready:
            raise httpx2.ConnectError("no process is ready")
        return f"http://127.0.0.1:{ready[next(self._turn) % len(ready)]}/v1"

    @contextmanager
    def looking(self) -> Iterator["Balancer"]:
        self._look()
        thread = threading.Thread(target=self._keep_looking, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join(60)

    def _keep_looking(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        self.ready = tuple(port for port in self.ports if _is_ready(port, slow=port in self.ready))


def _is_ready(port: int, *, slow: bool = False) -> bool:
    """Return whether a process says that it is ready; `slow` where it is too busy to say so in time."""
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=2).status_code == 200
    except httpx2.TimeoutException:
        return slow
    except httpx2.HTTPError:
        return False


@dataclass(eq=False)
class Clients:
    """Ask for chats and streams until they are told to stop; `outcomes` counts what they get."""

    balancer: Balancer
    key: str
    outcomes: Counter[str] = field(default_factory=Counter)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def asking(self) -> Iterator["Clients"]:
        threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(_CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60)

    def _ask(self) -> None:
        with httpx2.Client(headers={"Authorization": f"Bearer {self.key}"}, timeout=60) as http:
            while not self._stop.is_set():
                number = next(self._numbers)
                try:
                    outcome = _stream(http, self.balancer) if number % 2 else _chat(http, self.balancer, number)
                except httpx2.HTTPError as error:
                    outcome = f"{type(error).__name__} {error}"
                self.outcomes[outcome] += 1


def _chat(http: httpx2.Client, balancer: Balancer, number: int) -> str:
    messages = [{"role": "user", "content": f"Question {number}"}]
    said = http.post(f"{balancer.next_url()}/chat/completions", json={"model": MODEL, "messages": messages})
    whole = said.status_code == 200 and bool(said.json()["choices"][0]["message"]["content"])
    return "whole" if whole else f"{said.status_code} {said.text[:200]}"


def _stream(http: httpx2.Client, balancer: Balancer) -> str:
    messages = [{"role": "user", "content": f"{TRICKLE}{_WORDS} words"}]
    body = {"model": MODEL, "messages": messages, "stream": True}
    with http.stream("POST", f"{balancer.next_url()}/chat/completions", json=body) as said:
        data = [line.removeprefix("data: ") for line in said.iter_lines() if line.startswith("data: ")]
    words = sum("word" in (json.loads(chunk)["choices"][0]["delta"].get("content") or "") for chunk in data[:-1])
    return "whole" if (data[-1:], words) == (["[DONE]"], _WORDS) else f"{said.status_code} {words} words {data[-1:]}"


def _restart(system: System, name: str) -> None:
    """Send a process SIGTERM, and wait until the supervisor has started another one."""
    pid = system.pid(name)
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: system.pid(name) != pid, 60, f"{name} is another process")


def test_no_request_fails_while_each_process_is_restarted_in_turn(tmp_path: Path) -> None:
    with ExitStack() as stack:
        engine = stack.enter_context(StubEngine(tmp_path, MODEL, delay_ms=300))
        embed = stack.enter_context(StubEngine(tmp_path, EMBED_MODEL))
        notice = {"NIGHTMILL_SHUTDOWN_NOTICE_SECONDS": _NOTICE_SECONDS}
        system = System(tmp_path, engine.url, embed.url, rivals=True, **notice)
        stack.callback(system.destroy)
        system.start()
        db = stack.enter_context(closing(Database(f"sqlite:///{system.data / 'nightmill.db'}")))

        def generators() -> set[str]:
            with db.read() as session:
                rows = workers.present(session)
                return {row.id for row in rows if row.pool == "gpu" and row.state == "ready"}

        balancer = Balancer(system.ports)
        eventually(lambda: all(map(_is_ready, system.ports)) and len(generators()) == 2, 120, "all of it is up")
        clients = Clients(stack.enter_context(balancer.looking()), system.api_key)
        with clients.asking():
            pause(2)
            for name in ("web", "web2", "gpu", "gpu2"):
                _restart(system, name)
                eventually(lambda: balancer.ready == system.ports and len(generators()) == 2, 120, "it works again")
            eventually(lambda: clients.outcomes.total() >= _REQUESTS, 300, "all have asked")
        told = (system.data / "logs" / "up.log").read_text()

    total, failed = clients.outcomes.total(), clients.outcomes.total() - clients.outcomes["whole"]
    print(f"\nrestarted web, web2, gpu, gpu2: {failed} failed of {total} requests")
    assert (failed, dict(clients.outcomes)) == (0, {"whole": total})
    assert "SIGKILL" not in told
