"""MLflow: the steps of trainings as metrics of runs.

experiment of the project ─▶ run with the job's id as a tag ─▶ metrics of the steps after its last one ─▶ its end
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from jobs.clock import now
from jobs.finetuning.tables import FinetuneStep
from jobs.settings import Settings
from workers.finetuning.mlflow_server import MlflowServer, open_server, pairs
from workers.finetuning.tensorboard import metrics
from workers.finetuning.tracked_run import TrackedRun

_TAG: Final = "nightmill_job_id"
#: Steps of a request, which holds 1,000 metrics at most.
_STEPS: Final = 100
#: The metric that every step has: its last step is that of the run.
_LOSS: Final = "train/loss"
_STATUS: Final = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


class MlflowTracker:
    """A tracking server of MLflow."""

    live = True
    seconds = 5.0

    def __init__(self, config: Settings) -> None:
        self._config = config

    def send(self, run: TrackedRun, steps: Iterable[FinetuneStep]) -> tuple[str | None, int]:
        """See `Tracker`. A request whose answer was lost may have counted, so the server says what the run has."""
        with open_server(self._config) as server:
            run_id = run.run_id or _run_of(server, run)
            last = _last_step(server, run_id)
            missing = (step for step in steps if step.step > last)
            while page := list(islice(missing, _STEPS)):
                server.post("runs/log-batch", {"run_id": run_id, "metrics": [*_metrics(page)]})
                last = page[-1].step
            if run.end is not None:
                body = {"run_id": run_id, "status": _STATUS[run.end], "end_time": int(now() * 1000)}
                server.post("runs/update", body)
            return run_id, last


def _run_of(server: MlflowServer, run: TrackedRun) -> str:
    """Return the run of a job; it is made where there is none."""
    experiment = _experiment(server, f"nightmill-{run.project}")
    search = {"experiment_ids": [experiment], "filter": f"tags.{_TAG} = '{run.job_id}'", "max_results": 1}
    for known in server.post("runs/search", search).get("runs", ()):
        return str(known["info"]["run_id"])
    tags = {"mlflow.runName": run.model, _TAG: run.job_id}
    new = {"experiment_id": experiment, "start_time": int(now() * 1000), "tags": pairs(tags)}
    run_id = str(server.post("runs/create", new)["run"]["info"]["run_id"])
    server.post("runs/log-batch", {"run_id": run_id, "params": pairs(run.options)})
    return run_id


def _last_step(server: MlflowServer, run_id: str) -> int:
    """Return the last step that a run has; 0 where it has none."""
    data = server.get("runs/get", {"run_id": run_id})["run"].get("data", {})
    return max((int(metric["step"]) for metric in data.get("metrics", ()) if metric["key"] == _LOSS), default=0)


def _experiment(server: MlflowServer, name: str) -> str:
    known = server.get("experiments/get-by-name", {"experiment_name": name}, missing=True)
    if known:
        return str(known["experiment"]["experiment_id"])
    return str(server.post("experiments/create", {"name": name})["experiment_id"])


def _metrics(steps: Iterable[FinetuneStep]) -> Iterator[dict[str, Any]]:
    for step in steps:
        moment = int(step.created_at * 1000)
        for tag, value in metrics(step):
            yield {"key": tag, "value": value, "timestamp": moment, "step": step.step}
