"""A trainer that computes nothing: `python -m tests.support.fake_trainer` speaks as `workers.engines.training` does.

The environment variable FAKE_TRAINER is JSON: `die_at` kills the process at a step of a run that was not resumed, or
`always`; `fail` is the code of a failure at the fifth step, `seconds` is what a step takes, `best` the step after which
the loss of validations rises.
"""

import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers.engines.training import checkpoint_folder
from workers.engines.training.protocol import (
    CheckpointReport,
    EvaluationReport,
    Failed,
    Finished,
    Forgetting,
    Orders,
    Reason,
    Report,
    Spec,
    Started,
    Step,
    decode_spec,
    encode,
)

MEMORY = 1 << 20  # bytes that each step reports


def loss_of(seed: int, step: int) -> float:
    """Return a loss that depends on the seed and the step alone."""
    return 4.0 / step + hashlib.sha256(b"%d:%d" % (seed, step)).digest()[0] / 1000


def weights_of(seed: int, step: int) -> str:
    """Return the weights of an adapter after a step."""
    return f"weights-{seed}-{step}"


def main() -> None:
    spec = decode_spec(Path(sys.argv[1]).read_bytes())
    pipe, orders = os.fdopen(int(sys.argv[2]), "wb", buffering=0), Orders(os.fdopen(int(sys.argv[3]), "rb"))
    how = json.loads(os.environ.get("FAKE_TRAINER", "{}"))

    def send(report: Report) -> None:
        pipe.write(encode(report) + b"\n")

    resumed = 0
    if spec.resume:
        resumed = checkpoint_folder.verify(Path(spec.resume), resume=True).run["step"]
    rows = len(Path(spec.rows).read_bytes().splitlines())
    steps = spec.dry_run_steps or spec.n_epochs * -(-rows // spec.batch_size)
    send(Started(steps, rows, 10 * rows, "float32", "cpu", resumed, {}, {}))
    send(_forgetting(spec))
    for step in range(resumed + 1, steps + 1):
        threading.Event().wait(how.get("seconds", 0.01))
        _break(step, resumed, how)
        if how.get("fail") and step == 5:
            send(Failed(how["fail"], "The loss of step 5 is not a finite number (nan)."))
            return
        send(Step(step, spec.n_epochs * step / steps, loss_of(spec.seed, step), 0.5, 1.0, 1e-4, 100.0, MEMORY))
        if spec.validation and spec.eval_steps and step % spec.eval_steps == 0:
            send(EvaluationReport(step, _valid_loss(spec, step, how), 0.25))
        reason: Reason = "checkpoint" if orders.checkpoint_and_stop.is_set() else "memory_limit"
        stops = (reason == "checkpoint" or (spec.max_memory_bytes or MEMORY) < MEMORY) and step < steps
        if stops or step in (steps, step // (spec.save_steps or 1) * (spec.save_steps or 1)):
            _save(spec, step, steps, send, _valid_loss(spec, step, how))
        if stops:
            send(Finished(step, reason))
            return
    send(Finished(steps, "complete"))


def _break(step: int, resumed: int, how: dict[str, Any]) -> None:
    if step == how.get("die_at") and (not resumed or how.get("always")):
        os.kill(os.getpid(), signal.SIGKILL)


def _valid_loss(spec: Spec, step: int, how: dict[str, Any]) -> float:
    return 1.0 + abs(step - how["best"]) if "best" in how else 2 * loss_of(spec.seed, step)


def _forgetting(spec: Spec, after: float | None = None) -> Forgetting:
    texts = len(Path(spec.general).read_bytes().splitlines()) if spec.general else 64
    return Forgetting(texts, "texts", 3.0, after)


def _save(spec: Spec, step: int, steps: int, send: Callable[[Report], None], loss: float) -> None:
    if spec.dry_run_steps:
        return
    if step == steps:
        send(_forgetting(spec, 3.5))
    folder = Path(spec.output) / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_text(weights_of(spec.seed, step))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": spec.base_name}))
    (folder / "optimizer.pt").write_bytes(b"moments of step %d" % step)
    peft = "lora" if spec.peft == "auto" else spec.peft
    run = {"step": step, "steps": steps, "threads": spec.threads, "peft": peft}
    manifest = checkpoint_folder.seal(folder, run)
    files = {name: file.sha256 for name, file in manifest.files.items()}
    evaluated = spec.validation and spec.eval_steps and step % spec.eval_steps == 0
    metrics = {"step": step, "train_loss": loss_of(spec.seed, step)} | ({"full_valid_loss": loss} if evaluated else {})
    send(CheckpointReport(step, str(folder), files, metrics))


if __name__ == "__main__":
    main()
