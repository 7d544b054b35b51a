"""All that stands between an official SDK and an engine that answers an interactive client, in this process."""

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from openai import OpenAI

from cli.up import broker
from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.ids import new_id
from jobs.platform.storage import open_storage
from jobs.queues import Queue
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support.fake_engine import FakeEngine
from tests.support.system import eventually
from tests.support.web import make_key, running_app, serve
from tests.support.worker_rows import worker_row
from workers.engines.port import Engine
from workers.inference.consumer import ConsumerLimits, InteractiveConsumer
from workers.middleware.cache import CacheMiddleware
from workers.middleware.response_cache import ResponseCache
from workers.middleware.tuned_models import TunedModelMiddleware, TunedModels
from workers.runtime.adapter_files import AdapterFiles
from workers.runtime.engine_host import EngineHost

#: Machines that test are busy: a look-up that is not waited for would be a miss.
PATIENT = replace(Timings(), cache_patience=30.0)

MODEL = "fake-model"
_MODELS_FILE = f"""
models:
  {MODEL}: {{source: {{urls: ["http://127.0.0.1:9/v1"]}}, engine: http, aliases: [gpt-4o-mini]}}
"""


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that answers `Hello`, and the answers of it that are stored."""

    path: str
    question: dict[str, Any]
    folder: str = ""  # of storage; none: answers are not stored

    @property
    def body(self) -> dict[str, Any]:
        return {"model": MODEL, **self.question}

    def with_fields(self, **fields: Any) -> "Endpoint":
        return replace(self, question={**self.question, **fields})

    def stored_answers(self, client: OpenAI, query: str = "") -> dict[str, dict[str, Any]]:
        """Return the answers of a page of the project's list by their ids, in the page's order."""
        page: Any = client.get(f"/{self.path}{query}", cast_to=object)
        return {answer["id"]: answer for answer in page["data"]}


HELLO: Any = [{"role": "user", "content": "Hello"}]
CHAT = Endpoint("chat/completions", {"messages": HELLO})
STORED_CHAT = Endpoint("chat/completions", {"messages": HELLO, "store": True}, "completions")
COMPLETION = Endpoint("completions", {"prompt": "Hello"})
RESPONSE = Endpoint("responses", {"input": "Hello"}, "responses")
_NAMES = {id(CHAT): "chat", id(STORED_CHAT): "stored chat", id(COMPLETION): "completion", id(RESPONSE): "response"}


def endpoints(*chosen: Endpoint) -> pytest.MarkDecorator:
    """Run a test for each of these as `endpoint`."""
    return pytest.mark.parametrize("endpoint", chosen, ids=[_NAMES[id(endpoint)] for endpoint in chosen])


def text_of(answer: Any) -> str:
    """Return the text of a chat completion or a response."""
    if answer["object"] == "response":
        return str(answer["output"][0]["content"][0]["text"])
    return str(answer["choices"][0]["message"]["content"])


@dataclass
class Shop:
    """Everything between an SDK and an engine."""

    app: FastAPI
    client: OpenAI
    redis_url: str
    engine: FakeEngine
    host: EngineHost
    url: str
    response_cache: ResponseCache
    asked: list[str] = field(default_factory=list)

    @contextmanager
    def open(self, worker: str = "gpu-1", **facts: Any) -> Iterator[InteractiveConsumer]:
        """Open a worker that serves the queue, and announces it."""
        given = {name: facts.pop(name) for name in ConsumerLimits.__slots__ if name in facts}
        consumer = InteractiveConsumer(self.host, self.redis_url, Queue.GENERATE, ConsumerLimits(**given), **facts)
        self.announce(worker)
        serving = self.host.call(consumer.serve())
        try:
            yield consumer
        finally:
            self.host.call(consumer.close()).result(30)
            with suppress(CancelledError):
                serving.result(30)

    def announce(self, worker: str) -> None:
        with self.app.state.services.db.write() as session:
            workers.register(session, worker_row(worker, Queue.GENERATE, MODEL, created_at=now(), seen_at=now()))

    def leave(self, worker: str = "gpu-1") -> None:
        with self.app.state.services.db.write() as session:
            workers.leave(session, worker)

    @contextmanager
    def for_new_project(self) -> Iterator["Shop"]:
        """Yield the shop with a client of a new project and empty storage; its times end with it."""
        services = self.app.state.services
        timings = services.timings
        self.asked.clear()
        for path in (path for folder in ("completions", "conversations", "responses") for path in self.objects(folder)):
            services.storage.delete(path)
        with OpenAI(base_url=self.url, api_key=make_key(self.app, new_id("p")), max_retries=0, timeout=30) as client:
            yield replace(self, client=client)
        services.timings = timings
        self.wait_until_free()

    def wait_until_free(self) -> None:
        """Wait until the engine answers no request."""
        eventually(lambda: self.host._in_flight == 0, 30, "the engine is free")

    def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        """Without the SDK, which would neither send everything nor show everything."""
        given = {"Authorization": f"Bearer {self.client.api_key}", **headers}
        return httpx2.post(f"{self.url}/{path}", json=body, headers=given, timeout=30)

    def objects(self, folder: str) -> list[str]:
        """Return what is stored there."""
        found: list[str] = self.app.state.services.storage.list(folder)
        return found

    def stranger(self) -> OpenAI:
        """Return a client of another project."""
        key = make_key(self.app, "strangers")
        return OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=30)


def _identity(name: str) -> tuple[str, str]:
    return MODEL, "the fake's"


@contextmanager
def running_broker(folder: Path) -> Iterator[str]:
    """Yield the URL of an embedded broker."""
    server = subprocess.Popen(broker.command(folder), stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: broker.answers(folder), 20, "the broker answers")
        yield f"unix://{broker.socket_path(folder)}"
    finally:
        server.kill()
        server.wait()


@contextmanager
def shops(folder: Path, database_url: str, redis_url: str) -> Iterator[Callable[..., Shop]]:
    """Yield a function that makes shops.

    `engine` are the arguments of the fake engine, `around` is what stands before it, and the rest are settings.
    """
    with ExitStack() as stack:

        def make(
            engine: dict[str, Any] | None = None,
            around: Callable[[FakeEngine], Engine] | None = None,
            timings: Timings = Timings(),
            **settings: Any,
        ) -> Shop:
            (folder / "models.yaml").write_text(_MODELS_FILE)
            asked: list[str] = []
            fake = FakeEngine(models=(MODEL, "gpt-4o-mini"), on_prompt=asked.append, **(engine or {}))
            given = {"streams_url": redis_url, "models_file": str(folder / "models.yaml"), **settings}
            database = Database(database_url)
            stack.callback(database.close)
            response_cache = ResponseCache(database, 1 << 28, PATIENT)
            stack.callback(response_cache.close)
            config = Settings(data_dir=folder, **given)
            tuned_models = TunedModels(
                database,
                AdapterFiles(open_storage(config.storage), folder / "adapters"),
                serves=lambda name: name in fake.models,
                version_of=lambda _: fake.version,
            )
            cached = CacheMiddleware(around(fake) if around else fake, response_cache, _identity, config)
            host = EngineHost(TunedModelMiddleware(cached, tuned_models), lambda: None)
            host.start()
            stack.callback(host.close)
            app = stack.enter_context(running_app(folder, database_url, timings=timings, **given))
            url = f"{stack.enter_context(serve(app))}/v1"
            client = stack.enter_context(OpenAI(base_url=url, api_key=make_key(app), max_retries=0, timeout=30))
            return Shop(app, client, redis_url, fake, host, url, response_cache, asked)

        yield make
