"""The runtime of an embedding model: chosen once for these weights on this machine, by measuring, and recorded.

    start ─▶ record? ── yes ──▶ load what it says
                └─ no ─┬─ GPU ──────────────▶ measure now (no export, a second), record, load
                       ├─ runtime: onnx ────▶ measure in a child, wait for it, load
                       └─ CPU ──▶ torch now; a child measures when the machine is quiet: the next start has its choice

The child exports and quantises, which takes memory and, beside a batch, other people's time. So it waits until half
of the machine is idle, is as nice as can be, is the first that the kernel kills for memory, and dies with this engine;
where that hour never comes, torch stays. A lock lets one measure at a time: a second one would falsify both. The record
is written last; a child that is killed leaves a folder that the next one removes.

`engine_args` say what is not to be chosen: a `dtype` or `runtime: torch` is taken as it is, and nothing is measured.
"""

import ctypes
import fcntl
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec

from jobs.clock import now
from jobs.fleet import runtimes
from jobs.fleet.runtimes import Record
from workers.engines import embed_runtime_measuring as measuring
from workers.engines.embed_model import Computing, SentenceModel, check, threads_of
from workers.engines.folders import QUIET

log = logging.getLogger(__name__)

LIBRARIES: Final = ("torch", "transformers", "sentence-transformers", "onnxruntime")
QUIET_AFTER_SECONDS: Final = 60.0  # a worker that starts is rarely alone in it
PATIENCE_SECONDS: Final = 3600.0
LOOK_SECONDS: Final = 5.0
MOST_SECONDS: Final = 5400  # then a child that measures is stuck
_SAMPLE: Final = 1 << 20
_PR_SET_PDEATHSIG: Final = 1


class NeverQuiet(Exception):
    """The machine has had too much else to do. What is measured then says nothing of it."""


class MeasuringFailed(Exception):
    """The child that measures ended without a record."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where choices are kept, and how near to torch's vectors in float32 they have to be (1: nothing is measured)."""

    folder: Path
    floor: float


class Order(msgspec.Struct, frozen=True):
    """What a child is to measure."""

    name: str
    source: str
    revision: str | None
    args: dict[str, Any]
    folder: str
    floor: float
    key: str
    quiet_after: float = 0.0


class Chooser:
    """Loads one model. `close` ends what still measures."""

    def __init__(self, name: str, place: Place | None) -> None:
        self._name, self._place = name, place
        self._child: subprocess.Popen[bytes] | None = None
        self._closing = False

    def load(self, source: str, revision: str | None, args: Mapping[str, Any]) -> SentenceModel:
        check(args)
        self._closing = False
        place = self._place
        if place is None or not measures(args, place.floor):
            return SentenceModel(source, revision, args)
        key = key_of(self._name, source, revision, args, place.floor)
        order = Order(self._name, source, revision, dict(args), str(place.folder), place.floor, key)
        place.folder.mkdir(parents=True, exist_ok=True)
        record = runtimes.read(place.folder, key) or self._measured(order)
        return _load(order, record) if record else SentenceModel(source, revision, args)

    def close(self) -> None:
        self._closing = True
        if self._child:
            self._child.kill()

    def _measured(self, order: Order) -> Record | None:
        """The record, if it is to be waited for."""
        if _gpu():
            return measure_here(order)
        if order.args.get("runtime") != "onnx":
            threading.Thread(target=self._in_background, args=(order,), daemon=True, name="embed-runtime").start()
            return None
        self._run(order)
        return runtimes.read(Path(order.folder), order.key)

    def _in_background(self, order: Order) -> None:
        """A thread of its own: it waits for the child, and the kernel ends the child with it."""
        try:
            self._run(msgspec.structs.replace(order, quiet_after=QUIET_AFTER_SECONDS))
        except MeasuringFailed as error:
            if not self._closing:
                log.warning("embed.runtime_unknown", extra={"model": order.name, "reason": str(error)})

    def _run(self, order: Order) -> None:
        command = [sys.executable, "-m", "workers.engines.embed_runtime", str(os.getpid())]
        with tempfile.TemporaryFile() as errors:
            self._child = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
                command, stdin=subprocess.PIPE, stdout=errors, stderr=errors, env=os.environ | QUIET
            )
            stuck = threading.Timer(MOST_SECONDS, self._child.kill)  # Popen's own timeout looks 20 times a second
            stuck.daemon = True
            stuck.start()
            try:
                self._child.communicate(msgspec.json.encode(order))
            finally:
                stuck.cancel()
            if self._child.returncode:
                errors.seek(0)
                last = errors.read()[-2000:].decode(errors="replace").strip()
                raise MeasuringFailed(f"ended with {self._child.returncode}: {last}")


def measures(args: Mapping[str, Any], floor: float) -> bool:
    """Whether there is anything to choose."""
    runtime = args.get("runtime", "auto")
    return runtime == "onnx" or (runtime == "auto" and args.get("dtype", "auto") == "auto" and floor < 1)


def _load(order: Order, record: Record) -> SentenceModel:
    choice = record.choice
    file = runtimes.onnx_file(Path(order.folder), order.key) if choice.runtime == "onnx" else None
    try:
        return SentenceModel(order.source, order.revision, order.args, Computing(choice.dtype, file))
    except Exception:
        if file is None:
            raise
        log.exception("embed.runtime_unusable", extra={"model": order.name, "file": str(file)})
        runtimes.forget(Path(order.folder), order.key)  # the next start measures again
        return SentenceModel(order.source, order.revision, order.args)


def key_of(name: str, source: str, revision: str | None, args: Mapping[str, Any], floor: float) -> str:
    facts = {
        "name": name,
        "weights": _weights(Path(source)) if Path(source).is_dir() else f"{source}@{revision}",
        "machine": machine(threads_of(args)),
        "flags": _cpu().get("flags", "") or _cpu().get("Features", ""),
        "versions": versions(),
        "floor": floor,
        "runtime": args.get("runtime", "auto"),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _weights(folder: Path) -> str:
    """Sizes, times and samples of the files: reading gigabytes at every start would cost more than it tells."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found = path.stat()
        digest.update(f"{path.relative_to(folder)} {found.st_size} {found.st_mtime_ns}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(0, found.st_size - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def machine(threads: int) -> str:
    """What computes, in words."""
    if gpu := _gpu():
        return gpu
    cpu = _cpu()
    return f"{cpu.get('model name') or cpu.get('CPU part') or 'CPU'}, {threads} threads"


def _gpu() -> str:
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""


def _cpu() -> dict[str, str]:
    """The first processor, as the kernel tells it."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def versions() -> dict[str, str]:
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def measure_here(order: Order) -> Record:
    """Measure in this process, under the lock, and record it; or find that somebody else just has."""
    folder = Path(order.folder)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if found := runtimes.read(folder, order.key):
            return found
        for leftover in folder.glob(".scratch-*"):  # of a child that was killed
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=folder) as scratch:
            return _measure(order, folder, Path(scratch))


def _measure(order: Order, folder: Path, scratch: Path) -> Record:
    start = time.perf_counter()
    restricted = "onnx" if order.args.get("runtime") == "onnx" else ""
    model = SentenceModel(order.source, order.revision, order.args, Computing("float32"))
    found = measuring.measure(model, order.floor, scratch, restricted)
    if found.file:
        with found.file.open("rb") as file:
            os.fsync(file.fileno())
        found.file.chmod(0o644)
        found.file.rename(runtimes.onnx_file(folder, order.key))
    record = Record(
        model=order.name,
        machine=machine(model.threads),
        versions=versions(),
        floor=order.floor,
        measured_at=int(now()),
        seconds=round(time.perf_counter() - start, 1),
        candidates=found.candidates,
        chosen=found.chosen,
        restricted_to=restricted,
    )
    runtimes.write(folder, order.key, record)
    return record


def wait_until_quiet(least: float) -> None:
    """Until half of the processors have nothing to do. Raises NeverQuiet after an hour.

    On a busy machine threads wait for those of their siblings that do not run: on a 2-core EPYC, ONNX Runtime then won
    by three to one over a bfloat16 that needs less of the processor than it does.
    """
    until, pause = time.monotonic() + PATIENCE_SECONDS, threading.Event()
    pause.wait(least)
    while os.getloadavg()[0] > (os.cpu_count() or 1) / 2:
        if time.monotonic() > until:
            raise NeverQuiet
        pause.wait(LOOK_SECONDS)


def main(parent: int) -> None:
    """The child."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return  # it was gone before it could take us along
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    if order.quiet_after:
        os.nice(19)
        Path("/proc/self/oom_score_adj").write_text("1000")
        wait_until_quiet(order.quiet_after)
    measure_here(order)


if __name__ == "__main__":
    main(int(sys.argv[1]))
