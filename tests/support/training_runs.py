"""Runs of the trainer, each a child forked from one process that has loaded trl once: to load it takes ten seconds.

test ──run as JSON──▶ this module's process ──fork──▶ `workers.engines.training.__main__.main`
  ◀──reports, exit status──┘  kills it, tells it to stop or leaves it alone after a given step
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tests.support import tiny_llama
from workers.engines.training import protocol
from workers.engines.training.protocol import CheckpointReport, Spec, Step

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """A run that has ended: its reports, and its return code as `subprocess` has it."""

    reports: list[protocol.Report]
    status: int

    def of(self, kind: type[Any]) -> list[Any]:
        return [report for report in self.reports if isinstance(report, kind)]

    @property
    def losses(self) -> dict[int, float]:
        return {step.step: step.loss for step in self.of(Step)}

    @property
    def last_checkpoint(self) -> str | None:
        folders = [checkpoint.folder for checkpoint in self.of(CheckpointReport)]
        return folders[-1] if folders else None


class Trainers:
    """The process that the runs are forked from."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.training_runs"],
            cwd=ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, spec: Spec, after_step: int | None = None, action: str = "kill", delay: float = 0.0) -> Ended:
        """Run a spec to its end, or do something to it after a step, 0 at its start: `kill`, `stop` or `leave`."""
        Path(spec.output).mkdir(parents=True, exist_ok=True)
        file = Path(spec.output) / "spec.json"
        file.write_bytes(msgspec.json.encode(spec))
        order = {"spec": str(file), "after_step": after_step, "action": action, "delay": delay}
        answer = self._ask(order)
        return Ended([protocol.decode_report(text) for text in answer["reports"]], answer["status"])

    def write_model(self, folder: Path, **how: Any) -> Path:
        """Write a tiny model, and return its folder."""
        self._ask({"model": str(folder), "how": how})
        return folder

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _ask(self, order: Mapping[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _run(main: Callable[..., None], order: Mapping[str, Any]) -> dict[str, Any]:
    reports, reports_end = os.pipe()
    orders_end, orders = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if not child:
        os.close(reports)
        os.close(orders)
        os.dup2(2, 1)
        status = 1
        try:
            main(order["spec"], reports_end, orders_end, parent)
            status = 0
        except BaseException:  # noqa: BLE001 (of a fork: nothing may go on to what its parent does next)
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    os.close(reports_end)
    os.close(orders_end)
    texts = []
    if order["after_step"] == 0:
        _act(order["action"], child, orders)
    with os.fdopen(reports, "rb") as lines:
        for line in lines:
            texts.append(line.decode())
            report = protocol.decode_report(line)
            if isinstance(report, Step) and report.step == order["after_step"]:
                threading.Event().wait(order["delay"])
                _act(order["action"], child, orders)
    _, status = os.waitpid(child, 0)
    if order["action"] != "leave" or order["after_step"] is None:
        os.close(orders)
    return {"reports": texts, "status": os.waitstatus_to_exitcode(status)}


def _act(action: str, child: int, orders: int) -> None:
    if action == "kill":
        os.kill(child, signal.SIGKILL)
    elif action == "stop":
        os.write(orders, protocol.CHECKPOINT_AND_STOP)
    else:
        os.close(orders)


def serve() -> None:
    """Run what standard input asks for until it ends."""
    from workers.engines.training import trainer  # noqa: F401 (loads the libraries)
    from workers.engines.training.__main__ import main

    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        answer = _write(order) if "model" in order else _run(main, order)
        answers.write(json.dumps(answer).encode() + b"\n")


def _write(order: Mapping[str, Any]) -> None:
    tiny_llama.write(Path(order["model"]), **order["how"])


if __name__ == "__main__":
    serve()
