"""MLflow: the steps of trainings as metrics of runs, over its REST interface, without its library.

experiment of the project ─▶ run with the job's id as a tag ─▶ metrics of the steps after its last one ─▶ its end
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

import httpx2

from jobs.clock import now
from jobs.finetuning.tables import FinetuneStep
from jobs.settings import Settings
from workers.finetuning.tensorboard import metrics
from workers.finetuning.tracked_run import TrackedRun, TrackingFailed

_API: Final = "/api/2.0/mlflow"
_TAG: Final = "nightmill_job_id"
_SECONDS: Final = 10.0
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
        self._url = config.mlflow_url.rstrip("/") + _API
        self._auth, self._headers = _credentials(config.mlflow_token)

    def send(self, run: TrackedRun, steps: Iterable[FinetuneStep]) -> tuple[str | None, int]:
        """See `Tracker`. A request whose answer was lost may have counted, so the server says what the run has."""
        with httpx2.Client(timeout=_SECONDS, auth=self._auth, headers=self._headers) as client:
            server = _Server(client, self._url)
            run_id = run.run_id or server.run_of(run)
            last = server.last_step(run_id)
            missing = (step for step in steps if step.step > last)
            while page := list(islice(missing, _STEPS)):
                server.post("runs/log-batch", {"run_id": run_id, "metrics": [*_metrics(page)]})
                last = page[-1].step
            if run.end is not None:
                body = {"run_id": run_id, "status": _STATUS[run.end], "end_time": int(now() * 1000)}
                server.post("runs/update", body)
            return run_id, last


class _Server:
    """The requests to a server."""

    def __init__(self, client: httpx2.Client, url: str) -> None:
        self._client, self._url = client, url

    def run_of(self, run: TrackedRun) -> str:
        """Return the run of a job; it is made where there is none."""
        experiment = self._experiment(f"nightmill-{run.project}")
        search = {"experiment_ids": [experiment], "filter": f"tags.{_TAG} = '{run.job_id}'", "max_results": 1}
        for known in self.post("runs/search", search).get("runs", ()):
            return str(known["info"]["run_id"])
        tags = {"mlflow.runName": run.model, _TAG: run.job_id}
        new = {"experiment_id": experiment, "start_time": int(now() * 1000), "tags": _pairs(tags)}
        run_id = str(self.post("runs/create", new)["run"]["info"]["run_id"])
        self.post("runs/log-batch", {"run_id": run_id, "params": _pairs(run.options)})
        return run_id

    def last_step(self, run_id: str) -> int:
        """Return the last step that a run has; 0 where it has none."""
        data = self._request("GET", "runs/get", params={"run_id": run_id})["run"].get("data", {})
        return max((int(metric["step"]) for metric in data.get("metrics", ()) if metric["key"] == _LOSS), default=0)

    def _experiment(self, name: str) -> str:
        known = self._request("GET", "experiments/get-by-name", params={"experiment_name": name}, missing=True)
        if known:
            return str(known["experiment"]["experiment_id"])
        return str(self.post("experiments/create", {"name": name})["experiment_id"])

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._request("POST", path, json=body)

    def _request(self, method: str, path: str, *, missing: bool = False, **arguments: Any) -> dict[str, Any]:
        """Return the answer; with `missing` an empty one where what was asked for does not exist."""
        try:
            answer = self._client.request(method, f"{self._url}/{path}", **arguments)
            if missing and answer.status_code == httpx2.codes.NOT_FOUND:
                return {}
            if answer.status_code != httpx2.codes.OK:
                raise TrackingFailed(f"the server answered {path} with status {answer.status_code}.")
            body: dict[str, Any] = answer.json()
            return body
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise TrackingFailed(f"the server cannot be reached ({type(error).__name__}).") from error
        except ValueError as error:
            raise TrackingFailed("the server does not answer as MLflow does.") from error


def _metrics(steps: Iterable[FinetuneStep]) -> Iterator[dict[str, Any]]:
    for step in steps:
        moment = int(step.created_at * 1000)
        for tag, value in metrics(step):
            yield {"key": tag, "value": value, "timestamp": moment, "step": step.step}


def _pairs(values: Any) -> list[dict[str, str]]:
    return [{"key": name, "value": str(value)} for name, value in values.items()]


def _credentials(token: str) -> tuple[tuple[str, str] | None, dict[str, str]]:
    """Return `user:password` as a pair, or the header of a bearer token."""
    user, colon, password = token.partition(":")
    if colon:
        return (user, password), {}
    return None, {"Authorization": f"Bearer {token}"} if token else {}
