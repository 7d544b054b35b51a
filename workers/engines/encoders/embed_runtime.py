"""Choose the runtime of an embedding model, once for its weights on this machine, by measuring; record the choice.

    start ─▶ record? ── yes ──▶ load the recorded runtime
                └─ no ─┬─ GPU ──────────────▶ measure now (no export, a second), record, load
                       ├─ runtime: onnx ────▶ measure in a child, wait for it, load
                       └─ CPU ──▶ torch now; a child measures when the machine is quiet: the next start has its choice

The child exports and quantises, which takes memory, and time from a batch that runs. So it waits until half of the
machine is idle, has the lowest priority, is the first process that the kernel kills for memory, and dies with this
engine. On a machine that is never idle, torch stays. A lock admits one measurement at a time: two would falsify each
other. The record is written last; a killed child leaves a folder that the next one removes.

`engine_args` may fix the choice: with a `dtype` or `runtime: torch` nothing is measured.
`runtime_trials` measures the candidates.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from jobs.clock import now
from jobs.fleet import runtimes
from jobs.fleet.runtimes import RuntimeRecord
from jobs.platform import processes
from jobs.platform.locks import FileLock
from jobs.platform.storage import sync_path
from jobs.timings import Timings
from workers.engines.encoders.embed_model import Computing, SentenceModel, check, threads_of
from workers.engines.encoders.runtime_trials import measure
from workers.engines.foreign_errors import ForeignCall
from workers.engines.model_folders import QUIET, package_version

log = logging.getLogger(__name__)

LIBRARIES: Final = ("torch", "transformers", "sentence-transformers", "onnxruntime")
QUIET_AFTER_SECONDS: Final = 60.0  # other workers usually start at the same time
MAX_SECONDS: Final = 5400  # after which a measuring child counts as stuck
_SAMPLE: Final = 1 << 20


class NeverQuiet(Exception):
    """The machine was never idle enough to measure."""


class MeasuringFailed(Exception):
    """The measuring child ended without a record."""


@dataclass(frozen=True, slots=True)
class Choices:
    """The folder of recorded choices, and the least mean cosine to torch's vectors in float32.

    With a `floor` of 1 nothing is measured.
    """

    folder: Path
    floor: float


class Order(msgspec.Struct, frozen=True):
    """The order to a child: what to measure."""

    name: str
    source: str
    revision: str | None
    args: dict[str, Any]
    folder: str
    floor: float
    key: str
    quiet_after: float = 0.0


class Chooser:
    """Load one model on the chosen runtime. `close` ends a measurement."""

    def __init__(self, name: str, records: Choices | None) -> None:
        self._name, self._records = name, records
        self._child: subprocess.Popen[bytes] | None = None
        self._closing = False

    def load(self, source: str, revision: str | None, args: Mapping[str, Any]) -> SentenceModel:
        check(args)
        self._closing = False
        records = self._records
        if records is None or not measures(args, records.floor):
            return SentenceModel(source, revision, args)
        key = key_of(self._name, source, revision, args, records.floor)
        order = Order(self._name, source, revision, dict(args), str(records.folder), records.floor, key)
        records.folder.mkdir(parents=True, exist_ok=True)
        record = runtimes.read(records.folder, key) or self._measure_runtime(order)
        return _load(order, record) if record else SentenceModel(source, revision, args)

    def close(self) -> None:
        self._closing = True
        if self._child:
            self._child.kill()

    def _measure_runtime(self, order: Order) -> RuntimeRecord | None:
        """Return the record of a measurement made now; None where it runs in the background."""
        if _gpu():
            return measure_here(order)
        if order.args.get("runtime") != "onnx":
            threading.Thread(target=self._measure_in_child, args=(order,), daemon=True, name="embed-runtime").start()
            return None
        self._run(order)
        return runtimes.read(Path(order.folder), order.key)

    def _measure_in_child(self, order: Order) -> None:
        """Measure in a child, in a thread of its own: the kernel ends the child with its thread."""
        try:
            self._run(msgspec.structs.replace(order, quiet_after=QUIET_AFTER_SECONDS))
        except MeasuringFailed as error:
            if not self._closing:
                log.warning("embed.runtime_unknown", extra={"model": order.name, "reason": str(error)})

    def _run(self, order: Order) -> None:
        command = [sys.executable, "-m", "workers.engines.encoders.embed_runtime", str(os.getpid())]
        with tempfile.TemporaryFile() as errors:
            self._child = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
                command, stdin=subprocess.PIPE, stdout=errors, stderr=errors, env=os.environ | QUIET
            )
            stuck = threading.Timer(MAX_SECONDS, self._child.kill)  # Popen's own timeout looks 20 times a second
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
    """Return whether the arguments leave a choice."""
    runtime = args.get("runtime", "auto")
    return runtime == "onnx" or (runtime == "auto" and args.get("dtype", "auto") == "auto" and floor < 1)


def _load(order: Order, record: RuntimeRecord) -> SentenceModel:
    choice = record.choice
    if choice.runtime != "onnx":
        return SentenceModel(order.source, order.revision, order.args, Computing(choice.dtype))
    file = runtimes.onnx_file(Path(order.folder), order.key)
    with ForeignCall() as loading:
        return SentenceModel(order.source, order.revision, order.args, Computing(choice.dtype, file))
    log.error("embed.runtime_unusable", exc_info=loading.error, extra={"model": order.name, "file": str(file)})
    runtimes.forget(Path(order.folder), order.key)  # so that the next start measures again
    return SentenceModel(order.source, order.revision, order.args)


def key_of(name: str, source: str, revision: str | None, args: Mapping[str, Any], floor: float) -> str:
    identity = {
        "name": name,
        "weights": _weights(Path(source)) if Path(source).is_dir() else f"{source}@{revision}",
        "machine": machine(threads_of(args)),
        "flags": _cpu().get("flags", "") or _cpu().get("Features", ""),
        "versions": versions(),
        "floor": floor,
        "runtime": args.get("runtime", "auto"),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _weights(folder: Path) -> str:
    """Return a fingerprint of the weights by sizes, times and samples: hashing gigabytes at a start is slow."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        status = path.stat()
        digest.update(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(0, status.st_size - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def machine(threads: int) -> str:
    """Return a description of the GPU or CPU that computes."""
    if gpu := _gpu():
        return gpu
    cpu = _cpu()
    return f"{cpu.get('model name') or cpu.get('CPU part') or 'CPU'}, {threads} threads"


def _gpu() -> str:
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""


def _cpu() -> dict[str, str]:
    """Return the kernel's description of the first processor."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def versions() -> dict[str, str]:
    return {name: package_version(name) for name in LIBRARIES}


def measure_here(order: Order) -> RuntimeRecord:
    """Measure in this process, under the lock, and record the result, unless another process just has."""
    folder = Path(order.folder)
    with FileLock(folder / ".lock").hold():
        if record := runtimes.read(folder, order.key):
            return record
        for leftover in folder.glob(".scratch-*"):  # left by a killed child
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=folder) as scratch:
            return _measure(order, folder, Path(scratch))


def _measure(order: Order, folder: Path, scratch: Path) -> RuntimeRecord:
    start = time.perf_counter()
    restricted = "onnx" if order.args.get("runtime") == "onnx" else ""
    model = SentenceModel(order.source, order.revision, order.args, Computing("float32"))
    measured = measure(model, order.floor, scratch, restricted)
    if measured.file:
        sync_path(measured.file)
        measured.file.chmod(0o644)
        measured.file.rename(runtimes.onnx_file(folder, order.key))
    record = RuntimeRecord(
        model=order.name,
        machine=machine(model.threads),
        versions=versions(),
        floor=order.floor,
        measured_at=int(now()),
        seconds=round(time.perf_counter() - start, 1),
        candidates=measured.candidates,
        chosen=measured.chosen,
        restricted_to=restricted,
    )
    runtimes.write(folder, order.key, record)
    return record


def wait_until_quiet(least: float, timings: Timings = Timings()) -> None:
    """Wait until half of the processors have nothing to do.

    Raises:
        NeverQuiet: After an hour.

    On a busy machine threads wait for siblings that do not run: on a 2-core EPYC, ONNX Runtime then won by three to one
    over bfloat16, which needs less CPU time.
    """
    until, pause = time.monotonic() + timings.quiet_patience, threading.Event()
    pause.wait(least)
    while os.getloadavg()[0] > (os.cpu_count() or 1) / 2:
        if time.monotonic() > until:
            raise NeverQuiet
        pause.wait(timings.quiet_look)


def main(parent: int) -> None:
    """Run the child."""
    processes.die_with(parent)
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    if order.quiet_after:
        os.nice(19)
        Path("/proc/self/oom_score_adj").write_text("1000")
        wait_until_quiet(order.quiet_after)
    measure_here(order)


if __name__ == "__main__":
    main(int(sys.argv[1]))
