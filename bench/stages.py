"""Measure the stages of ingestion one by one, without a deployment. `bench ingest` runs this in a process of its own.

    parse     the child process of one cpu worker, over all documents
    embed     the engine alone, over some of their chunks
    index     LanceDB: appended as indexing does, then compacted and indexed, with arbitrary vectors

A deployment runs the three at the same time, on different documents.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.embed import by_engine
from jobs.retrieval.documents import Document
from workers.engines.model_folders import MINILM, materialise
from workers.retrieval.ingestion.index import CHUNKS_AT_ONCE
from workers.retrieval.parsing.contract import FileRefused
from workers.retrieval.parsing.parser import Cutting, Parser, ParserLimits
from workers.vectors.base import Store, VectorEntry
from workers.vectors.lance import LanceVectors

_EMBEDDED = 256  # chunks, enough for a rate
_STORE = Store("vs_bench", "bench", MINILM, 384)


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds for all chunks; `sampled` chunks were embedded."""

    parse: float
    embed: float
    index: float
    chunks: int
    sampled: int


def main(folder: Path, tokens: int, overlap: int) -> Stages:
    cutting = Cutting(materialise(MINILM, Path()) / "tokenizer.json", tokens, overlap)
    parse, documents = _parse(sorted(folder.iterdir()), cutting)
    texts = [document.piece(n) for document in documents for n in range(len(document.chunks))]
    some = texts[:: max(1, len(texts) // _EMBEDDED)]
    embed, _ = asyncio.run(by_engine(some))
    return Stages(parse, embed * len(texts) / len(some), _index(documents), len(texts), len(some))


def _parse(paths: Sequence[Path], cutting: Cutting) -> tuple[float, list[Document]]:
    parser = Parser(ParserLimits())
    _read(parser, paths[0], cutting)  # starts the process
    began = time.monotonic()
    documents = [document for path in paths if (document := _read(parser, path, cutting))]
    seconds = time.monotonic() - began
    parser.close()
    return seconds, documents


def _read(parser: Parser, path: Path, cutting: Cutting) -> Document | None:
    """Return the parsed document; None for a document that the parser refuses, such as one without text."""
    try:
        return parser.parse(path, path.name, cutting)
    except FileRefused:
        return None


def _index(documents: Sequence[Document]) -> float:
    entries = list(_entries(documents))
    with tempfile.TemporaryDirectory() as folder:
        vectors = LanceVectors(Path(folder))
        began = time.monotonic()
        for at in range(0, len(entries), CHUNKS_AT_ONCE):
            vectors.write(_STORE, entries[at : at + CHUNKS_AT_ONCE])
        vectors.tend(_STORE)
        seconds = time.monotonic() - began
        vectors.close()
    return seconds


def _entries(documents: Sequence[Document]) -> Iterator[VectorEntry]:
    random = np.random.default_rng(1)
    for d, document in enumerate(documents):
        for n in range(len(document.chunks)):
            vector = random.standard_normal(_STORE.dimensions).astype(np.float32)
            yield VectorEntry(f"vsd_{d}.1", n, document.piece(n), f"{d}-{n}", vector / np.linalg.norm(vector))


if __name__ == "__main__":
    found = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps({name: getattr(found, name) for name in Stages.__slots__}))
