"""Measure the CPU time that the cache of vectors costs and saves beside embedding itself, in one process on SQLite.

    python -m bench cache [--texts 1000] [--alone] [--folder FOLDER]

    engine   the engine alone
    miss     an empty cache before the engine: keys, look-up, and the writing of the computed vectors
    hit      a cache that has every vector: the engine is not called

The engine is all-MiniLM-L6-v2 on torch, the texts are docstrings of the standard library. Requests have one text (as
lines of a batch, 256 in flight) or 32 (as a client that embeds documents sends them). Times are CPU time of the process
on all cores, in milliseconds for 1,000 texts. `cache alone` measures the cache before an engine that only writes JSON.
"""

import argparse
import asyncio
import base64
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from bench.deployment import make_folder
from bench.embed import _texts
from jobs.bootstrap import migrate
from jobs.db.engine import Database
from jobs.fleet.models_file import Registry
from jobs.queues import Queue
from jobs.settings import Settings
from workers.engines.build_engines import build
from workers.engines.model_folders import MINILM
from workers.engines.port import Answer, Emit, Engine, Request, Usage
from workers.middleware.cache import CacheMiddleware
from workers.middleware.response_cache import ResponseCache

_IN_FLIGHT = 256
_SIZES = (1, 32)
_VECTOR = base64.b64encode(np.linspace(-1, 1, 384, dtype="<f4").tobytes()).decode()


class Nothing:
    """An engine that answers without computing."""

    models = (MINILM,)

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def answer(self, request: Request) -> Answer:
        count = len(request.body["input"])
        data = [{"object": "embedding", "index": n, "embedding": _VECTOR} for n in range(count)]
        return Answer(200, msgspec.json.encode({"data": data}), Usage(count), (1,) * count)

    async def stream(self, request: Request, emit: Emit) -> Answer:
        raise NotImplementedError


def main() -> None:
    parser = argparse.ArgumentParser(description="measure what the cache of vectors costs and saves")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--folder", type=make_folder, help="where the database goes; default: the temporary folder")
    parser.add_argument("--alone", action="store_true", help="the cache alone, without a model")
    options = parser.parse_args()
    texts = _texts(options.texts)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        asyncio.run(_measured(texts, Path(folder), alone=options.alone))


async def _measured(texts: Sequence[str], folder: Path, *, alone: bool) -> None:
    config = Settings(data_dir=folder, embedding_floor=1)
    migrate(config.database)
    database = Database(config.database, patience=10)
    response_cache = ResponseCache(database, config.cache_max_bytes)
    engine = build(config, Registry.load(config), Queue.EMBED)
    if not alone:
        await engine.start()
        await _run(engine, texts[:64], 1, "warm")
    table = Table("texts of a request", "", "CPU ms / 1,000", "texts/s", title=f"{len(texts)} texts", box=box.SIMPLE)
    for size in _SIZES:
        free = CacheMiddleware(Nothing(), response_cache, engine.identity, config)
        rows: list[tuple[str, Engine, str]] = [
            ("an engine that costs nothing", Nothing(), "b"),
            ("cache alone, miss", free, f"q{size}"),
            ("cache alone, hit", free, f"q{size}"),
        ]
        if not alone:
            cached = CacheMiddleware(engine, response_cache, engine.identity, config)
            rows += [("engine", engine, "a"), ("miss", cached, f"p{size}"), ("hit", cached, f"p{size}")]
        for title, one, tenant in rows:
            cpu, wall = await _timed(one, response_cache, texts, size, tenant)
            table.add_row(str(size), title, f"{cpu / len(texts) * 1e6:.0f}", f"{len(texts) / wall:.0f}")
    if not alone:
        await engine.close()
    Console(width=100).print(table)
    response_cache.close()
    database.close()


async def _timed(
    engine: Engine, response_cache: ResponseCache, texts: Sequence[str], size: int, tenant: str
) -> tuple[float, float]:
    """Return the seconds of CPU, writing included, and the seconds until the last answer."""
    cpu, wall = time.process_time(), time.monotonic()
    await _run(engine, texts, size, tenant)
    answered = time.monotonic() - wall
    await asyncio.to_thread(response_cache.flush)
    return time.process_time() - cpu, answered


async def _run(engine: Engine, texts: Sequence[str], size: int, tenant: str) -> None:
    bodies = iter([texts[at : at + size] for at in range(0, len(texts), size)])

    async def lane() -> None:
        for some in bodies:
            body = {"model": MINILM, "input": list(some), "encoding_format": "base64"}
            answer = await engine.answer(Request("/v1/embeddings", body, "bench", 0, tenant))
            assert answer.status == 200, answer.body

    await asyncio.gather(*(lane() for _ in range(_IN_FLIGHT)))


if __name__ == "__main__":
    main()
