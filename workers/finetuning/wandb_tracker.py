"""Weights & Biases: a run for each job that asks for one, written by a child process, where the library stays.

online    a child for each thousand steps; the run is resumed, and knows which steps it has
offline   one child once the job has ended; its file, for `wandb sync`, goes to `training/<job>/wandb` in the storage
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

from jobs.finetuning.jobs import FOLDER
from jobs.finetuning.tables import FinetuneStep
from jobs.platform.storage import CHUNK, Storage
from jobs.settings import Settings
from workers.finetuning.tensorboard import metrics
from workers.finetuning.tracked_run import TrackedRun, TrackingFailed

CHILD: Final = Path(__file__).with_name("wandb_child.py")
_SECONDS: Final = 240.0
_LOG_LINES: Final = 20
#: The library's own reports of errors and of the machine are off: it sends and keeps what it is given here.
_ENVIRONMENT: Final = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
_SETTINGS: Final = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "disable_job_creation": True,
    "save_code": False,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


class WandbTracker:
    """Weights & Biases, or a folder of its files."""

    seconds = 60.0  # a child takes some of them to start

    def __init__(self, config: Settings, storage: Storage, python: str = sys.executable) -> None:
        self.live = config.wandb_mode == "online"
        self._storage, self._python = storage, python
        keys = {"WANDB_API_KEY": config.wandb_api_key, "WANDB_BASE_URL": config.wandb_url}
        self._secrets = {name: value for name, value in keys.items() if value and self.live}

    def send(self, run: TrackedRun, steps: Iterable[FinetuneStep]) -> tuple[str | None, int]:
        """See `Tracker`. Offline the file of the run is written anew each time, as a whole."""
        with tempfile.TemporaryDirectory(prefix="nightmill-wandb-") as name:
            folder = Path(name)
            last = self._write(run, steps, folder)
            if not self.live:
                self._store(run.job_id, folder / "wandb")
        return run.job_id, last

    def _write(self, run: TrackedRun, steps: Iterable[FinetuneStep], folder: Path) -> int:
        """Have a child write the run; return the last step that it was given."""
        last = run.step
        with (folder / "lines").open("w+") as lines:
            lines.write(json.dumps(self._head(run)) + "\n")
            for step in steps:
                lines.write(json.dumps({"step": step.step, "metrics": dict(metrics(step))}) + "\n")
                last = step.step
            lines.seek(0)
            self._run_child(lines, folder)
        return last

    def _head(self, run: TrackedRun) -> dict[str, Any]:
        assert run.wandb is not None
        init = {
            "id": run.job_id,
            "project": run.wandb.project,
            "entity": run.wandb.entity,
            "name": run.wandb.name or run.model,
            "tags": run.wandb.tags,
            "config": dict(run.options),
            "mode": "online" if self.live else "offline",
            "resume": "allow" if self.live else None,
        }
        return {"init": init, "settings": _SETTINGS, "exit_code": 0 if run.end in (None, "succeeded") else 1}

    def _run_child(self, lines: IO[str], folder: Path) -> None:
        """Run the child to its end. Raises TrackingFailed."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTMILL_", "WANDB_"))}
        log = folder / "log"
        with log.open("wb") as output:
            child = subprocess.Popen(  # noqa: S603 (our own script)
                [self._python, str(CHILD)],
                stdin=lines,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=inherited
                | _ENVIRONMENT
                | self._secrets
                | {"WANDB_DIR": str(folder), "WANDB_CACHE_DIR": str(folder)},
                start_new_session=True,
            )
        try:
            status = child.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            raise TrackingFailed(f"it was not done after {_SECONDS:g} seconds.") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if status:
            last_lines = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
            raise TrackingFailed("its library failed, see the worker's log.") from RuntimeError(last_lines)

    def _store(self, job_id: str, folder: Path) -> None:
        """Store the one file of the run that `wandb sync` reads."""
        (path,) = folder.glob("offline-run-*/run-*.wandb")
        with path.open("rb") as source, self._storage.writer(f"{FOLDER}/{job_id}/wandb/{path.name}") as target:
            shutil.copyfileobj(source, target, CHUNK)
