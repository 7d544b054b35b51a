"""A deployment in one process: the real dispatcher, planner, runner and finisher, over the fake engine.

Messages go straight to the handlers on a few threads instead of through a broker, so that a test drives the whole
way of a job in milliseconds. The broker can be told to lose messages.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.batches.batches import ENDPOINTS
from jobs.clock import now
from jobs.db.engine import Database
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Job
from jobs.platform.storage import DiskStorage
from jobs.queues import Queue, Task
from jobs.security import keys
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support.fake_engine import FakeEngine
from workers.batches.slot_scheduler import SlotScheduler
from workers.dispatcher.loop import Dispatcher
from workers.engines.port import Engine
from workers.lifecycle import finish, plan_all, run_shard, run_with_slot
from workers.middleware.cache import CacheMiddleware
from workers.middleware.response_cache import ResponseCache
from workers.middleware.tuned_models import TunedModelMiddleware, TunedModels
from workers.runtime.adapter_files import AdapterFiles
from workers.runtime.context import Context, Pool, build
from workers.runtime.engine_host import EngineHost

#: Machines that test are busy: a look-up that is not waited for would be a miss.
PATIENT = replace(Timings(), cache_patience=30.0)

CHAT = "/v1/chat/completions"
MODEL = "fake-model"


def chat_line(custom_id: str, prompt: str, **body: Any) -> dict[str, Any]:
    """Return a request of a batch file."""
    messages = [{"role": "user", "content": prompt}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": MODEL, "messages": messages, **body},
    }


def jsonl(lines: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@dataclass
class InlineDeployment:
    """`submit` a batch, `drain` until it ends, read `results`."""

    config: Settings
    db: Database
    storage: DiskStorage
    engine: Engine
    cpu: Context
    gpu: Context
    host: EngineHost
    response_cache: ResponseCache
    lose_messages: Callable[[str], bool] = lambda _task: False
    elsewhere: Callable[[str, str, Sequence[Any]], bool] = lambda _task, _queue, _arguments: False
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(4)
        self.slot_scheduler = SlotScheduler(4)
        self._handled: list[Future[None]] = []
        timings = Timings(cancel_grace=1.0)
        self.dispatcher = Dispatcher(self.config, self.db, self.storage, self, timings=timings)

    def publish(self, task: str, queue: str, arguments: Sequence[object]) -> None:
        """Deliver a message as the broker does: to a worker, here or `elsewhere`, or to nobody."""
        if not self.lose_messages(task) and not self.elsewhere(task, queue, arguments):
            self._handled = [handled for handled in self._handled if not handled.done()]
            self._handled.append(self._threads.submit(self._handle, task, queue, arguments))

    def submit(self, content: bytes, *, project: str = "default", **fields: Any) -> str:
        """Submit a batch over `content`, and return the job's id."""
        path = f"files/{new_id('file-')}"
        self.storage.put(path, content)
        endpoint = fields.pop("endpoint", CHAT)
        values: dict[str, Any] = {
            "id": new_id("batch_"),
            "kind": ENDPOINTS[endpoint],
            "endpoint": endpoint,
            "payload": {},
            "input_path": path,
            "created_at": now(),
            "deadline": now() + 3600,
        }
        with self.db.write() as session:
            owner = keys.ensure_project(session, project)
            job = Job(project_id=owner.id, **{**values, **fields})
            return ledger.submit(session, job, actor="test").id

    def job(self, job_id: str) -> Job:
        with self.db.read() as session:
            return session.get_one(Job, job_id)

    def drain(self, *job_ids: str, timeout: float = 20.0) -> list[Job]:
        """Tick until all of these have ended."""
        self.until(lambda: all(self.job(job_id).state in TERMINAL for job_id in job_ids), timeout)
        return [self.job(job_id) for job_id in job_ids]

    def wait_until_idle(self, timeout: float = 20.0) -> None:
        """Let those who are at work come to their end: a job has ended before its handler did its last lines."""
        assert not wait(self._handled, timeout).not_done, "a handler does not end"
        assert not self.errors, self.errors

    def until(self, reached: Callable[[], bool], timeout: float = 20.0) -> None:
        pause = threading.Event()
        ends = time.monotonic() + timeout
        while not reached():
            assert time.monotonic() < ends, "the deployment stands still"
            assert not self.errors, self.errors
            self.dispatcher.tick()
            pause.wait(0.005)

    def results(self, job: Job) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the lines of the output file and of the error file."""
        return self._lines(job.output_file_id), self._lines(job.error_file_id)

    def close(self) -> None:
        for context in (self.cpu, self.gpu):
            context.heartbeat.leave()
        self._threads.shutdown(wait=True)
        self.host.close()
        self.response_cache.close()
        for context in (self.cpu, self.gpu):
            context.usage.close()
            context.db.close()

    def _lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        with self.storage.reader(f"files/{file_id}") as handle:
            return [json.loads(line) for line in handle.read().splitlines()]

    def _handle(self, task: str, queue: str, arguments: Sequence[Any]) -> None:
        try:
            if task == Task.PLAN:
                plan_all(self.cpu, arguments)
            elif queue == Queue.EVALUATE:
                run_shard(self.cpu, Queue.EVALUATE, (), *arguments)
            elif task == Task.RUN:
                run_with_slot(self.gpu, self.host, self.slot_scheduler, *arguments)
            elif task == Task.FINISH:
                finish(self.cpu, *arguments)
        except BaseException as error:
            logging.getLogger(__name__).exception("handler_raised")
            self.errors.append(error)


@contextmanager
def running(
    db: Database,
    folder: Path,
    engine: Engine | None = None,
    timings: Timings = Timings(),
    queue: str = Queue.GENERATE,
    **settings: Any,
) -> Iterator[InlineDeployment]:
    """Yield a deployment over `db`, with small constants. `queue` is what its worker with an engine serves."""
    scaled = {
        "shard_lines": 8,
        "lease_seconds": 1.5,
        "redelivery_seconds": 0.3,
        "min_free_bytes": 0,
        "segment_seconds": 0.05,
    }
    config = Settings(data_dir=folder, database_url=db.url, **{**scaled, **settings})
    engine = engine or FakeEngine(models=(MODEL,))
    response_cache = ResponseCache(db, config.cache_max_bytes, PATIENT)
    storage = DiskStorage(folder / "files")
    tuned_models = TunedModels(
        db,
        AdapterFiles(storage, folder / "adapters", whole=queue == Queue.TUNED),
        serves=lambda name: name in engine.models,
        version_of=lambda _: FakeEngine.version,
        timings=timings,
    )
    cached = CacheMiddleware(engine, response_cache, lambda name: (name, "the fake's"), config)
    host = EngineHost(TunedModelMiddleware(cached, tuned_models), lambda: None, timings=timings)
    host.start()
    cpu = build(config, Pool("cpu", (Queue.PLAN, Queue.EVALUATE), 2), timings)
    gpu = build(config, Pool("gpu", (queue,), 2, models=("*", *engine.models)), timings)
    inline = InlineDeployment(config, db, storage, engine, cpu, gpu, host, response_cache)
    try:
        yield inline
    finally:
        inline.close()
