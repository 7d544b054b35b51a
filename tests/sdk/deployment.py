"""A deployment that runs batches by itself while suites talk to it, with a webhook receiver beside it."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from fastapi import FastAPI

from jobs.db.engine import Database
from jobs.finetuning import examination, jobs
from jobs.finetuning.examination import BaseUnavailable
from jobs.inference import responses
from jobs.queues import Queue, Task
from jobs.retrieval import searches
from jobs.retrieval.searches import FoundChunk, Search
from jobs.timings import Timings
from tests.sdk.front import Front, standing_before
from tests.sdk.tuned import BASE, tuned
from tests.support import training_worker, worker_steps
from tests.support.background_thread import beside
from tests.support.fake_engine import FakeEngine, Fault, prompt_of
from tests.support.idle_workers import TRAINER
from tests.support.inline_deployment import MODEL, InlineDeployment, running
from tests.support.receiver import Receiver
from tests.support.servers import Valkey
from tests.support.training_thread import training
from tests.support.web import make_key, running_app, serve
from workers.dispatcher.loop import Dispatcher
from workers.engines.port import Answer, Length, Request
from workers.evals.python_grader import look_for_sandbox
from workers.inference.consumer import InteractiveConsumer
from workers.inference.peer_client import PeerClient
from workers.inference.token_counting import TokenCounter
from workers.kinds import HANDLERS
from workers.lifecycle import run_shard
from workers.middleware.file_search.excerpts import ContextBudget
from workers.middleware.file_search.middleware import FileSearchMiddleware
from workers.retrieval.ingestion.purge import purge
from workers.retrieval.parsing.parser import Parser, limits_of
from workers.retrieval.reranking import Reranking
from workers.retrieval.search import Searching
from workers.runtime.context import Pool, build
from workers.webhooks import loop

#: More than two pages at the largest limit.
PAST = 260
ALIAS = "acme/tiny"
#: In the models file, and no worker has it.
ASLEEP = "acme/asleep"
#: Of one address in a minute, before 429. Each suite sends one from here, and so many from an address of its own.
WRONG_KEYS = 10
_MODELS_FILE = f"""
models:
  {MODEL}:
    source: {{urls: ["http://127.0.0.1:9/v1"]}}
    engine: http
    aliases: [{ALIAS}]
  {ASLEEP}:
    source: {{urls: ["http://127.0.0.1:9/v1"]}}
    engine: http
    queue: gpu.asleep
  {BASE}:
    source: {{path: /nowhere}}
    engine: vllm
    queue: gpu.asleep
"""


@dataclass(frozen=True, slots=True)
class Deployment:
    """Run a deployment for a suite, which receives its `facts`."""

    url: str
    app: FastAPI
    inline: InlineDeployment
    receiver: Receiver
    front: Front
    past: list[str]
    bases: list[str]

    def facts(self, sdk: str) -> dict[str, Any]:
        """Return the facts for a suite, which has a project of its own, and another that all suites only read."""
        return {
            "sdk": sdk,
            "url": self.url,
            "front": self.front.url,
            "receiver": self.receiver.url("ok"),
            "key": make_key(self.app, sdk),
            "past_key": make_key(self.app, "past"),
            "past": self.past,
            "model": MODEL,
            "alias": ALIAS,
            "asleep": ASLEEP,
            "embed_model": MODEL,
            "wrong_keys": WRONG_KEYS,
            "tuned": tuned(self.inline, sdk),
            "bases": self.bases,
        }


@contextmanager
def deployed(
    folder: Path, db: Database, *, fault: Fault | None = None, bases: Mapping[str, Path] | None = None
) -> Iterator[Deployment]:
    """Run everything in this process, over the fake engine, which answers some requests as `fault` says.

    `bases` are the folders of models by name, on which a trainer that computes nothing trains. Without them each job of
    fine-tuning waits for its base.
    """
    models, bases = folder / "models.yaml", bases or {}
    base = {"engine": "vllm", "queue": Queue.GENERATE, "engine_args": {"enable_lora": True}}
    trained = {name: {**base, "source": {"path": str(path)}} for name, path in bases.items()}
    models.write_text(_MODELS_FILE + "".join(f"  {name}: {json.dumps(model)}\n" for name, model in trained.items()))
    settings: dict[str, Any] = {
        "webhook_allow_private": True,
        "models_file": str(models),
        "wrong_keys_per_minute": WRONG_KEYS,
        "wandb_mode": "offline",
    }
    with ExitStack() as stack:
        patches = stack.enter_context(pytest.MonkeyPatch.context())
        if bases:
            patches.setitem(HANDLERS, jobs.NAME, HANDLERS[jobs.NAME])
            training_worker.use(TRAINER)
        else:
            patches.setattr(examination, "examine", _wait_for_the_base)
        carrier = Valkey(folder / "valkey")
        stack.callback(carrier.close)
        carrier.start()
        settings |= {"streams_url": carrier.url}

        async def search(request: Request, wanted: Search) -> Sequence[FoundChunk] | Answer:
            return await peers.search(request, wanted)

        engine = FileSearchMiddleware(FakeEngine((MODEL, *bases), fault=fault), search, lambda _: ContextBudget(1000))
        inline = stack.enter_context(running(db, folder, engine, **settings))
        peers = PeerClient(inline.gpu)
        stack.callback(lambda: inline.host.call(peers.close()).result(5))
        past = [_ended(inline, n) for n in range(PAST)]
        app = stack.enter_context(running_app(folder, db.url, **settings))
        url = stack.enter_context(serve(app))
        receiver = stack.enter_context(Receiver())
        front = stack.enter_context(standing_before(url, receiver))
        stack.enter_context(_answering(inline, carrier.url))
        stack.enter_context(_ingesting(inline))
        if bases:
            stack.enter_context(training(inline))
            look_for_sandbox(inline.cpu.standing, inline.cpu.stop)
            inline.cpu.heartbeat.announce()
        stack.enter_context(beside(lambda stop: _tick(inline, stop)))
        timings = replace(Timings(), deliveries_idle=3600.0)
        stack.enter_context(beside(lambda stop: loop.run(db, inline.config, "io-1", stop, timings)))
        yield Deployment(url, app, inline, receiver, front, past, list(bases))


@contextmanager
def _answering(inline: InlineDeployment, url: str) -> Iterator[None]:
    """Interactive clients get their answers of the engine that runs the batches."""
    searching = Searching(inline.gpu, inline.host, Reranking(inline.gpu, inline.host, Queue.GENERATE))
    counting = TokenCounter(inline.host, _words, _nothing, lambda _: ContextBudget(1000))
    own = {searches.URL: searching.answer, responses.COUNT_URL: counting.answer}
    consumer = InteractiveConsumer(inline.host, url, Queue.GENERATE, handlers=own)
    inline.host.call(consumer.serve())
    try:
        yield
    finally:
        inline.host.call(consumer.close()).result(5)
        searching.close()


async def _words(request: Request) -> Length:
    """Estimate the tokens of a request by its words, because the fake engine has no tokens."""
    return Length(len(prompt_of(request.url, request.body).split()), 1000)


async def _nothing(request: Request, search: Search) -> Sequence[FoundChunk]:
    return ()


class _Readers:
    """Pass messages to the deployment, and those of parsing to one worker here, with one thread."""

    def __init__(self, inline: InlineDeployment) -> None:
        self._mill = inline
        self._context = build(inline.config, Pool("cpu", (Queue.INGEST,), slots=1))
        self._parser = Parser(limits_of(inline.config))
        self._thread = ThreadPoolExecutor(1)

    def publish(self, task: str, queue: str, arguments: Sequence[Any]) -> None:
        if queue != Queue.INGEST:
            self._mill.publish(task, queue, arguments)
        else:
            self._thread.submit(self._handle, task, arguments)

    def close(self) -> None:
        self._context.heartbeat.leave()
        self._thread.shutdown()
        self._parser.close()
        self._context.db.close()

    def _handle(self, task: str, arguments: Sequence[Any]) -> None:
        try:
            if task == Task.PURGE:
                purge(self._context)
            else:
                run_shard(self._context, Queue.INGEST, (self._parser,), *arguments)
        except BaseException as error:  # noqa: BLE001 (the last test asks for them)
            self._mill.errors.append(error)


@contextmanager
def _ingesting(inline: InlineDeployment) -> Iterator[None]:
    with closing(_Readers(inline)) as readers:
        inline.dispatcher = Dispatcher(inline.config, inline.db, inline.storage, readers)
        yield


def _wait_for_the_base(*_: Any) -> NoReturn:
    raise BaseUnavailable


def _ended(inline: InlineDeployment, n: int) -> str:
    """Record a batch that has ended in the past, with two transactions."""
    job_id = inline.submit(b"", project="past", created_at=1_700_000_000 + n)
    worker_steps.fail(
        inline.db, job_id, [{"code": "empty_file", "line": None, "message": "The file is empty.", "param": None}]
    )
    return job_id


def _tick(inline: InlineDeployment, stop: threading.Event) -> None:
    while not stop.wait(0.02):
        inline.dispatcher.tick()
