"""The steps of a training and versions of models at MLflow's own server, and steps in files of two other trackers.

Weights & Biases and TensorBoard read these files themselves.

Their libraries are in an environment of their own. Nothing is sent to Weights & Biases: `online` is not run.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from sqlalchemy import func, select, update

from jobs.db.engine import Database
from jobs.finetuning import tracking
from jobs.webhooks.tables import FeedCursor
from tests.sdk.environments import HERE, NotMade, programs
from tests.support import tuned_versions
from tests.support.services import need
from tests.support.system import free_port, wait_for
from tests.support.tracked_training import JOB, RESULT, TrackedJob
from workers.finetuning import tensorboard
from workers.finetuning.mlflow_tracker import MlflowTracker
from workers.finetuning.results import steps_after
from workers.finetuning.wandb_tracker import WandbTracker
from workers.runtime.context import Context
from workers.sinks.loop import send_due
from workers.sinks.mlflow_registry import MlflowRegistry
from workers.sinks.sink import FeedSink

#: MLflow's server takes half a minute to start on a busy machine; the first test may install it before.
pytestmark = [pytest.mark.verify, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def installed() -> Path:
    try:
        return programs("tracking")
    except NotMade as error:
        need("the environment of trackers", error)


@contextmanager
def mlflow_server(installed: Path, folder: Path, port: int) -> Iterator[str]:
    folder.mkdir(exist_ok=True)
    store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder)]
    words = [str(installed / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "PATH": f"{installed}:/usr/bin:/bin"}
    with (folder / "log").open("ab") as log:
        server = subprocess.Popen(words, cwd=folder, env=quiet, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _is_up(url), 240, "MLflow's server", every=0.5)
        yield url
    finally:
        subprocess.run(["kill", "--", f"-{server.pid}"], check=True)
        server.wait(60)


def _is_up(url: str) -> bool:
    with suppress(httpx2.HTTPError):
        return httpx2.get(f"{url}/health", timeout=5).status_code == 200
    return False


def history(url: str, run_id: str, key: str) -> list[tuple[int, float]]:
    query = {"run_id": run_id, "metric_key": key, "max_results": 1000}
    answer = httpx2.get(f"{url}/api/2.0/mlflow/metrics/get-history", params=query, timeout=30).json()
    return sorted((int(metric["step"]), metric["value"]) for metric in answer["metrics"])


def test_mlflow_has_each_step_once_despite_outage_and_retraining(
    sqlite: Database, tmp_path: Path, installed: Path
) -> None:
    port = free_port()
    job = TrackedJob(sqlite, tmp_path, tracking.MLFLOW, mlflow_url=f"http://127.0.0.1:{port}")
    tracker = MlflowTracker(job.context.config)
    job.train(range(1, 21))
    job.send(tracker)
    assert "cannot be reached" in job.warnings()[0]

    with mlflow_server(installed, tmp_path / "mlflow", port) as url:
        job.send(tracker)
        before = job.row
        job.train(range(11, 251))  # from a checkpoint of step 10 on
        job.send(tracker)
        forget(job, before)  # killed before it noted what it had sent
        job.end()
        job.send(tracker)

        run_id = str(job.row.run_id)
        run = httpx2.get(f"{url}/api/2.0/mlflow/runs/get", params={"run_id": run_id}, timeout=30).json()["run"]
        losses, validation = history(url, run_id, "train/loss"), history(url, run_id, "valid/loss")

    assert losses == [(n, 1.0 / n) for n in range(1, 251)]
    assert [step for step, _ in validation] == list(range(5, 251, 5))
    params = {param["key"]: param["value"] for param in run["data"]["params"]}
    assert (run["info"]["status"], run["info"]["run_name"], params["base"]) == ("FINISHED", RESULT, "tiny")
    assert len(job.warnings()) == 1


def forget(job: TrackedJob, before: Any) -> None:
    with job.db.write() as session:
        row = session.merge(job.row)
        row.step, row.run_id = before.step - 5, None


def test_a_run_of_weights_and_biases_and_a_file_of_tensorboard_have_each_step_once(
    sqlite: Database, tmp_path: Path, installed: Path
) -> None:
    job = TrackedJob(sqlite, tmp_path, tracking.WANDB, wandb_mode="offline")
    tracker = WandbTracker(job.context.config, job.context.storage, str(installed / "python"))
    job.train(range(1, 251))
    job.send(tracker)
    assert job.context.storage.list(f"training/{JOB}") == []
    job.end("failed")
    job.send(tracker)

    (stored,) = job.context.storage.list(f"training/{JOB}/wandb")
    events = tmp_path / tensorboard.file_name(JOB, 1.0)
    events.write_bytes(b"".join(tensorboard.encode(steps_after(job.context, JOB, 0), 1.0)))
    words = [str(installed / "python"), str(HERE / "tracking_suite.py"), str(tmp_path / "files" / stored), str(events)]
    read = json.loads(subprocess.run(words, check=True, capture_output=True, text=True, timeout=300).stdout)

    run = read["run"]
    assert (run["id"], run["project"], run["name"], run["tags"]) == (JOB, "proj", RESULT, ["a"])
    assert run["config"]["base"] == "tiny"
    assert [(step["step"], step["train/loss"]) for step in read["steps"]] == [(n, 1.0 / n) for n in range(1, 251)]
    assert [step["step"] for step in read["steps"] if "valid/loss" in step] == list(range(5, 251, 5))
    assert read["exit_code"] == 1
    assert job.warnings() == []
    scalars = read["scalars"]
    assert [step for step, _ in scalars["train/loss"]] == list(range(1, 251))
    assert scalars["train/loss"][3][1] == pytest.approx(0.25)
    assert [step for step, _ in scalars["valid/loss"]] == list(range(5, 251, 5))


def send_all(context: Context, sink: FeedSink) -> None:
    """Send what is due after a while."""
    with context.db.write() as session:
        session.execute(update(FeedCursor).values(due_at=0.0))
    while send_due(context, sink):
        with context.db.read() as session:
            if session.scalar(select(func.max(FeedCursor.failures))):
                return


def test_mlflow_registry_has_each_version_once_and_aliases_follow_stages_despite_outage(
    sqlite: Database, tmp_path: Path, installed: Path
) -> None:
    port = free_port()
    job = TrackedJob(sqlite, tmp_path, tracking.MLFLOW, mlflow_url=f"http://127.0.0.1:{port}")
    registry, project = MlflowRegistry(job.context.config), tuned_versions.project_of(sqlite)
    first = tuned_versions.trained(sqlite, project, "abcdefghi1", dataset="dataset:refunds@3/train")
    tuned_versions.moved(sqlite, project, first, "production")
    send_all(job.context, registry)

    with mlflow_server(installed, tmp_path / "mlflow", port) as url:
        send_all(job.context, registry)
        second = tuned_versions.trained(sqlite, project, "abcdefghi2")
        tuned_versions.moved(sqlite, project, second, "staging")
        send_all(job.context, registry)
        before = registered(url)
        tuned_versions.moved(sqlite, project, second, "production")
        with sqlite.write() as session:
            session.execute(update(FeedCursor).values(position=0))  # killed before it noted what it had sent
        send_all(job.context, registry)
        after = registered(url)
        query = {"filter": f"name = '{quote(f'Support:{tuned_versions.FAMILY}', safe='')}'"}
        versions = httpx2.get(f"{url}/api/2.0/mlflow/model-versions/search", params=query, timeout=30).json()

    assert before == {"production": "1", "staging": "2"}
    assert after == {"production": "2"}
    tags = {
        version["version"]: {tag["key"]: tag["value"] for tag in version["tags"]}
        for version in versions["model_versions"]
    }
    assert {number: each["nightmill_stage"] for number, each in tags.items()} == {"1": "archived", "2": "production"}
    assert tags["1"]["nightmill_model"] == first
    assert tags["1"]["nightmill_dataset"] == "dataset:refunds@3/train"
    assert (tags["2"]["nightmill_number"], tags["2"]["nightmill_sha256"]) == ("2", "2" * 64)


def registered(url: str) -> dict[str, str]:
    """Return the aliases of the only registered model, and the versions that they name."""
    answer = httpx2.get(f"{url}/api/2.0/mlflow/registered-models/search", timeout=30).json()
    (model,) = answer["registered_models"]
    return {alias["alias"]: alias["version"] for alias in model.get("aliases", ())}
