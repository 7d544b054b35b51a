"""The ingestion of the test deployment: the product's own handlers parse, embed and remove documents.

cpu.ingest ──▶ a thread with the parser, whose child dies with it
gpu.embed  ──▶ a thread over the fake engine, whose vectors know words
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from jobs.queues import Queue, Task
from jobs.settings import Settings
from tests.support.fake_engine import FakeEngine
from tests.support.ingestion import MODEL, Reaper, Wordy
from workers.lifecycle import run, run_shard
from workers.retrieval.ingestion.purge import purge
from workers.retrieval.parsing.parser import Parser, limits_of
from workers.runtime.context import Pool, build
from workers.runtime.engine_host import EngineHost


class Ingester:
    """Handle the messages of ingestions."""

    def __init__(self, config: Settings) -> None:
        self.errors: list[BaseException] = []
        self._reading, self._embedding = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._reader = build(config, Pool("cpu", (Queue.INGEST,), 1))
        self._embedder = build(config, Pool("embed", (Queue.EMBED,), 1, models=(MODEL,)))
        self._parser = Parser(limits_of(config))
        self._host = EngineHost(FakeEngine(("*",), fault=Wordy(Reaper())), lambda: None)
        self._host.start()

    def handle(self, task: str, queue: str, arguments: Sequence[Any]) -> bool:
        """Return whether this message was for us."""
        if task == Task.PURGE:
            self._reading.submit(self._handle, partial(purge, self._reader))
        elif task == Task.RUN and queue == Queue.INGEST:
            self._reading.submit(self._handle, partial(self._read, *arguments))
        elif task == Task.RUN and queue == Queue.EMBED:
            self._embedding.submit(self._handle, partial(run, self._embedder, self._host, *arguments))
        else:
            return False
        return True

    def close(self) -> None:
        for context in (self._reader, self._embedder):
            context.heartbeat.stop_all()
        self._reading.submit(self._parser.close)
        for threads in (self._reading, self._embedding):
            threads.shutdown(wait=True)
        self._host.close()
        for context in (self._reader, self._embedder):
            context.heartbeat.leave()
            context.db.close()

    def _read(self, job_id: str, n: int) -> None:
        run_shard(self._reader, Queue.INGEST, (self._parser,), job_id, n)

    def _handle(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            logging.getLogger(__name__).exception("handler_raised")
            self.errors.append(error)
