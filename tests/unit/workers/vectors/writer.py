"""Entries to write, and a process that writes them: it begins when its standard input says so, and says what is done.

python -m tests.unit.workers.vectors.writer URL FOLDER STORE PREFIX DOCUMENTS
"""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.system import ROOT
from workers.vectors.base import Store, Vector, VectorEntry
from workers.vectors.open_vectors import open_vectors

DIMENSIONS = 8
#: Entries of each document that the process writes.
ENTRIES = 5


def a_store(name: str, dimensions: int = DIMENSIONS) -> Store:
    return Store(name, "proj_1", "sentence/model", dimensions)


def towards(*weights: float, dimensions: int = DIMENSIONS) -> Vector:
    """Return the direction of these coordinates, of length 1; the rest is 0."""
    vector = np.zeros(dimensions, np.float32)
    vector[: len(weights)] = weights
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def an_entry(document: str, n: int, text: str, vector: Vector | None = None, **meta: Any) -> VectorEntry:
    return VectorEntry(document, n, text, digest_of(text), towards(1, n) if vector is None else vector, meta)


def a_document(key: str, entries: int = ENTRIES) -> list[VectorEntry]:
    return [an_entry(key, n, f"passage {n} of {key}") for n in range(entries)]


def start(url: str, folder: Path, store: Store, prefix: str, documents: int) -> "subprocess.Popen[str]":
    words = [url, str(folder), store.id, prefix, str(documents)]
    command = [sys.executable, "-m", "tests.unit.workers.vectors.writer", *words]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(process: "subprocess.Popen[str]") -> None:
    """Once it is ready."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


def main(url: str, folder: str, store: str, prefix: str, documents: str) -> None:
    vectors = open_vectors(url, Path(folder))
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(documents)):
        vectors.write(a_store(store), a_document(f"{prefix}{number}"))
        print(number, flush=True)
    vectors.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
