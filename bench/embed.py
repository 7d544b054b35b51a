"""Measure texts a second that are embedded: a deployment and its engine, against plain sentence-transformers.

    python -m bench embed [--pairs 3] [--texts 1000] [--chosen]

    batch     /v1/embeddings through the Batch API on a warm worker (state `running`; in total: from the creation of the
              job to the downloaded output), without the cache of vectors
    engine    the engine alone, in a process of its own, with all its requests of 32 texts waiting at once
    encode    SentenceTransformer(model).encode(texts), with its defaults, in a process of its own

Model, texts (docstrings of the standard library) and niceness are equal. Each process loads the model and runs it once
before its clock starts. The order changes from pair to pair. All compute with torch; the deployment and the engine use
the type that `auto` selects. With `--chosen` the deployment first measures and chooses a runtime, for which it waits
until the machine is quiet.
"""

import argparse
import asyncio
import base64
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from bench import rival
from bench.deployment import Deployment, make_folder
from bench.vector_store import embedding_deployment, engine_environment
from examples import corpus
from jobs.fleet.models_file import Registry
from jobs.queues import Queue
from jobs.requests.endpoints import EMBEDDINGS
from jobs.settings import Settings
from workers.engines.build_engines import build
from workers.engines.model_folders import MINILM, materialise
from workers.engines.port import Request
from workers.retrieval.ingestion.embedding import TEXTS_AT_ONCE, read_vectors

_WARM = ["A sentence, so that the model has run once."]
_MOST_TOKENS = 254  # the model's limit without special tokens: encode() truncates, the engine refuses

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Run:
    """The results of one run, in seconds."""

    batch: float
    whole: float
    engine: float
    encode: float


def main() -> None:
    options = _options()
    console = Console(width=120)
    texts = _texts(options.texts)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "texts.json").write_text(json.dumps(texts))
        _write_batch(folder / "in.jsonl", texts)
        with embedding_deployment(folder, chosen=options.chosen) as inline:
            settings = engine_environment(inline, chosen=options.chosen)
            runs = [_round(inline, folder, settings, n) for n in range(options.pairs)]
        _show(console, runs, len(texts))
        for part in ("batch", "engine"):
            same = cosines(np.load(folder / f"{part}.npy"), np.load(folder / "encode.npy"))
            console.print(f"cosine of {part} and encode: min {same.min():.5f}, mean {same.mean():.5f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure embedding against sentence-transformers")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1000, help="or as many as there are")
    parser.add_argument("--chosen", action="store_true", help="embed with the runtime chosen here, not with torch")
    parser.add_argument("--folder", type=make_folder, help="where the data goes; default: the temporary folder")
    return parser.parse_args()


def cosines(ours: Matrix, theirs: Matrix) -> npt.NDArray[np.float64]:
    """Return the cosine of each pair of rows."""
    a, b = ours.astype(float), theirs.astype(float)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / lengths)


def _texts(count: int) -> list[str]:
    tokenizer = Tokenizer.from_file(str(_model() / "tokenizer.json"))
    tokenizer.no_truncation()
    found = [f"{one.name}: {one.text}" for one in corpus.docstrings(2 * count)]
    counted = zip(found, tokenizer.encode_batch_fast(found, add_special_tokens=False), strict=True)
    return [text for text, tokens in counted if len(tokens) <= _MOST_TOKENS][:count]


def _model() -> Path:
    return materialise(MINILM, Path())  # the package is used from its folder


def _write_batch(path: Path, texts: Sequence[str]) -> None:
    with path.open("w") as handle:
        for n, text in enumerate(texts):
            body = {"model": MINILM, "input": text, "encoding_format": "base64", "cache": False}
            handle.write(json.dumps({"custom_id": str(n), "method": "POST", "url": EMBEDDINGS, "body": body}) + "\n")


def _round(inline: Deployment, folder: Path, settings: Mapping[str, str], n: int) -> Run:
    encode = _alone("encode", folder, settings) if n % 2 else None
    batch, whole = _through_api(inline, folder)
    engine = _alone("engine", folder, settings)
    return Run(batch, whole, engine, encode or _alone("encode", folder, settings))


def _through_api(inline: Deployment, folder: Path) -> tuple[float, float]:
    """Return the seconds in state `running`, and the seconds from creation to output. Store the vectors."""
    file_id = inline.upload(folder / "in.jsonl")
    began = time.monotonic()
    done = inline.run(file_id, endpoint=EMBEDDINGS)
    content = inline.client.files.content(done.job["output_file_id"]).content
    whole = time.monotonic() - began
    np.save(folder / "batch.npy", _in_order(content))
    return done.running, whole


def _in_order(output: bytes) -> Matrix:
    """Return the vectors of an output file, sorted by the numbers in their custom_ids."""
    lines: list[Mapping[str, Any]] = [json.loads(line) for line in output.splitlines()]
    lines.sort(key=lambda line: int(line["custom_id"]))
    raw = [base64.b64decode(line["response"]["body"]["data"][0]["embedding"]) for line in lines]
    return np.stack([np.frombuffer(vector, "<f4") for vector in raw])


def _alone(part: str, folder: Path, settings: Mapping[str, str]) -> float:
    return float(rival.run(["-m", "bench.embed", part, folder], environment=settings)["seconds"])


def _show(console: Console, runs: Sequence[Run], count: int) -> None:
    table = Table(
        "texts/s, median", "ours", "encode", "ratio", title=f"{count} texts, {len(runs)} rounds", box=box.SIMPLE
    )
    for title, part in (("batch, running", "batch"), ("batch, whole", "whole"), ("engine alone", "engine")):
        ours = [getattr(run, part) for run in runs]
        ratio = statistics.median(run.encode / seconds for run, seconds in zip(runs, ours, strict=True))
        theirs = statistics.median(run.encode for run in runs)
        table.add_row(title, f"{count / statistics.median(ours):.1f}", f"{count / theirs:.1f}", f"{ratio:.3f}")
    console.print(table)


# -- run in a process of its own


def part(name: str, folder: Path) -> None:
    """Embed the texts in the folder, store the vectors, and print the seconds."""
    texts = json.loads((folder / "texts.json").read_text())
    seconds, vectors = asyncio.run(by_engine(texts)) if name == "engine" else _by_encode(texts)
    np.save(folder / f"{name}.npy", vectors)
    print(json.dumps({"seconds": seconds}))


async def by_engine(texts: Sequence[str]) -> tuple[float, Matrix]:
    """Embed in requests of the size that indexing uses, all waiting at once."""
    config = Settings()
    engine = build(config, Registry.load(config), Queue.EMBED)
    await engine.start()
    await engine.answer(_request(_WARM))
    began = time.monotonic()
    some = [texts[at : at + TEXTS_AT_ONCE] for at in range(0, len(texts), TEXTS_AT_ONCE)]
    answers = await asyncio.gather(*(engine.answer(_request(one)) for one in some))
    vectors = [vector for answer in answers for vector in read_vectors(answer)]
    seconds = time.monotonic() - began
    await engine.close()
    return seconds, np.stack(vectors)


def _request(texts: Sequence[str]) -> Request:
    body = {"model": MINILM, "input": list(texts), "encoding_format": "base64"}
    return Request(EMBEDDINGS, body, "bench", 0, "bench")


def _by_encode(texts: Sequence[str]) -> tuple[float, Matrix]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(_model()))
    model.encode(_WARM)
    began = time.monotonic()
    vectors = model.encode(texts)
    return time.monotonic() - began, np.asarray(vectors)


if __name__ == "__main__":
    part(sys.argv[1], Path(sys.argv[2]))
