"""A vector store of a deployment, filled and searched through the SDK."""

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from openai.types import StaticFileChunkingStrategyObjectParam
from openai.types.vector_stores import VectorStoreFileBatch

from bench.deployment import Deployment, deployed
from bench.papers import Paper
from workers.engines.model_folders import MINILM

_LOOK_SECONDS = 0.1
_AT_ONCE = 5  # parallel uploads, as in the SDK's own helper
TOKENS, OVERLAP = 254, 25  # the model's limit
_LINES = ("web", "dispatcher", "cpu", "embed")
_CHOICE_SECONDS = 1800.0  # the worker waits until the machine is quiet
#: Disables the measuring of runtimes, which would disturb the benchmark.
_TORCH = {"NIGHTMILL_EMBEDDING_FLOOR": "1"}


@dataclass(frozen=True, slots=True)
class Ingested:
    """The outcome of one call, and its seconds."""

    seconds: float
    completed: int
    failed: int


class BenchStore:
    """One vector store."""

    def __init__(self, inline: Deployment) -> None:
        self._mill = inline
        self.id = inline.client.vector_stores.create(name="bench", extra_body={"embedding_model": MINILM}).id

    def upload(self, papers: Sequence[Paper]) -> list[str]:
        """Upload papers; return their ids in the same order."""

        def one(paper: Paper) -> str:
            return self._mill.client.files.create(file=(paper.name, paper.data), purpose="user_data").id

        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return list(threads.map(one, papers))

    def ingest(self, ids: Sequence[str]) -> Ingested:
        """Add files, and wait until all can be searched."""
        files = self._mill.client.vector_stores.file_batches
        cut: StaticFileChunkingStrategyObjectParam = {
            "type": "static",
            "static": {"max_chunk_size_tokens": TOKENS, "chunk_overlap_tokens": OVERLAP},
        }
        began = time.monotonic()
        batch = files.create(self.id, file_ids=list(ids), chunking_strategy=cut)
        while batch.status == "in_progress":
            threading.Event().wait(_LOOK_SECONDS)
            self._mill.system.check()
            batch = files.retrieve(batch.id, vector_store_id=self.id)
        return _ingested(batch, time.monotonic() - began)

    def remove(self) -> None:
        """Delete the store. A project's vectors are reused as long as any of its stores has them."""
        self._mill.client.vector_stores.delete(self.id)

    def chunks(self) -> int:
        """Count the chunks in the database; the API does not show them."""
        with closing(sqlite3.connect(self._mill.system.folder.path / "nightmill.db")) as database:
            [found] = database.execute("SELECT sum(entries) FROM vector_store_file WHERE store_id = ?", (self.id,))
        return int(found[0] or 0)


def _ingested(batch: VectorStoreFileBatch, seconds: float) -> Ingested:
    counts = batch.file_counts
    assert batch.status == "completed", batch
    assert counts.completed + counts.failed == counts.total, counts
    return Ingested(seconds, counts.completed, counts.failed)


@contextmanager
def embedding_deployment(
    folder: Path, *, chosen: bool = False, environment: Mapping[str, str] | None = None
) -> Iterator[Deployment]:
    """Yield a warm deployment that embeds with torch, or with the runtime that it has `chosen` in an earlier start."""
    environment = {"NIGHTMILL_VLLM_ENABLED": "false", **({} if chosen else _TORCH), **(environment or {})}
    if chosen:
        with deployed(folder, _LINES, (), environment) as inline:
            _wait_until_served(inline)
            _wait_for_choice(inline)
    with deployed(folder, _LINES, (), environment) as inline:
        _wait_until_served(inline)
        yield inline


def engine_environment(inline: Deployment, *, chosen: bool) -> dict[str, str]:
    """Return the settings of a process whose engine is configured as the deployment's."""
    return {"NIGHTMILL_DATA_DIR": str(inline.system.folder.path), **({} if chosen else _TORCH)}


def _wait_until_served(inline: Deployment) -> None:
    """Wait until the workers are ready and the model has run once."""
    inline.wait_for("cpu.plan")
    inline.wait_for("gpu.embed")
    store = BenchStore(inline)
    store.ingest(store.upload([Paper("warm.txt", b"A sentence, so that the model has run once.")]))
    store.remove()


def _wait_for_choice(inline: Deployment) -> None:
    records, deadline = inline.system.folder.path / "models" / "runtimes", time.monotonic() + _CHOICE_SECONDS
    while not any(records.glob("*.json")):
        inline.system.check()
        assert time.monotonic() < deadline, "no runtime was chosen"
        threading.Event().wait(1.0)
