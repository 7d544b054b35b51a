"""The steps of trainings at experiment trackers: each once, whoever dies, and never in the training's way."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from jobs.clock import now
from jobs.db.engine import Database
from jobs.finetuning import tracking
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetuneStep
from jobs.settings import Settings
from tests.support import fake_mlflow
from tests.support.fake_mlflow import FakeMlflow
from tests.support.tracked_training import JOB, RESULT, TrackedJob
from workers.finetuning.mlflow_tracker import MlflowTracker
from workers.finetuning.tracked_run import TrackedRun, TrackingFailed
from workers.finetuning.wandb_tracker import WandbTracker


class Recording:
    """A tracker that keeps what it is sent, unless it is away."""

    seconds = 5.0

    def __init__(self, *, live: bool = True) -> None:
        self.live = live
        self.steps: list[int] = []
        self.validated: list[int] = []
        self.ends: list[str | None] = []
        self.away: Exception | None = None

    def send(self, run: TrackedRun, steps: Iterable[FinetuneStep]) -> tuple[str | None, int]:
        if self.away is not None:
            raise self.away
        last = run.step
        for step in steps:
            self.steps.append(last := step.step)
            self.validated += [step.step] if step.valid_loss is not None else []
        self.ends.append(run.end)
        return "run", last


@pytest.fixture
def job(sqlite: Database, tmp_path: Path) -> TrackedJob:
    return TrackedJob(sqlite, tmp_path, tracking.MLFLOW)


def test_each_step_is_sent_once_and_last_step_waits_for_its_evaluation(job: TrackedJob) -> None:
    tracker = Recording()

    job.train(range(1, 6))
    job.send(tracker)
    assert tracker.steps == [1, 2, 3, 4]
    job.train(range(6, 9))
    job.send(tracker)
    job.end()
    job.send(tracker)

    assert tracker.steps == list(range(1, 9))
    assert tracker.validated == [5]
    assert tracker.ends == [None, None, "succeeded"]
    assert (job.row.due_at, job.row.run_id, job.row.step) == (None, "run", 8)
    assert not job.send(tracker)


def test_steps_repeated_by_resumed_training_are_not_resent(job: TrackedJob) -> None:
    tracker = Recording()
    job.train(range(1, 8))
    job.send(tracker)

    job.train(range(4, 11))  # from a checkpoint of step 3 on
    job.end()
    job.send(tracker)

    assert tracker.steps == list(range(1, 11))


def test_unavailable_tracker_gets_all_steps_later_with_single_warning(job: TrackedJob) -> None:
    tracker = Recording()
    tracker.away = TrackingFailed("the server cannot be reached (ConnectError).")
    job.train(range(1, 4))
    for _ in range(3):
        job.send(tracker)

    away = "MLflow did not take the steps: the server cannot be reached (ConnectError)."
    assert job.warnings() == [f"{away} The training goes on, and they are sent again later."]
    assert job.row.failures == 3
    assert (job.row.due_at or 0) > now() + 15
    job.train(range(4, 3000))
    tracker.away = None
    job.end("failed")
    job.send(tracker)
    assert tracker.steps == list(range(1, 3000))
    assert (tracker.ends, job.row.failures, job.row.due_at) == (["failed"], 0, None)


def test_an_error_of_a_tracker_says_nothing_of_its_own_to_clients(job: TrackedJob) -> None:
    tracker = Recording()
    tracker.away = ValueError("https://user:secret@mlflow")
    job.train(range(1, 4))

    job.send(tracker)

    assert "secret" not in job.warnings()[0]


def test_a_tracker_that_never_comes_back_is_given_up(job: TrackedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "MAX_FAILURES", 2)
    tracker = Recording()
    tracker.away = TrackingFailed("the server cannot be reached (ConnectError).")
    job.train(range(1, 4))

    sent = [job.send(tracker) for _ in range(3)]

    assert sent == [True, True, False]
    assert job.warnings()[0].startswith("MLflow is given up")


def test_steps_that_wait_are_sent_in_bounded_portions_while_the_job_trains(job: TrackedJob) -> None:
    tracker = Recording()
    job.train(range(1, 2502))

    counts = []
    for _ in range(3):
        assert (job.row.due_at or 0) <= now()  # at once, without the wait of a run that is up to date
        job.send(tracker)
        counts.append(len(tracker.steps))

    assert counts == [1000, 2000, 2500]


def test_only_single_worker_claims_tracked_run(job: TrackedJob) -> None:
    with job.db.read() as session:
        rows = [tracking.due(session, tracking.MLFLOW) for _ in range(2)]

    with job.db.write() as session:
        claims = [tracking.claim(session, row, 60.0) for row in rows if row is not None]
        tracking.record_steps(
            session, rows[1] or job.row, 1.0, step=99, run_id=None, due_at=None
        )  # of a claim that is over

    assert [claim is not None for claim in claims] == [True, False]
    assert job.row.step == 0


def test_a_tracker_without_a_connection_gets_all_steps_at_the_end(job: TrackedJob) -> None:
    tracker = Recording(live=False)
    job.train(range(1, 6))
    job.send(tracker)
    assert tracker.steps == []

    job.end("cancelled")
    job.send(tracker)

    assert (tracker.steps, tracker.ends) == ([1, 2, 3, 4, 5], ["cancelled"])


def test_trackers_are_those_that_the_deployment_and_the_job_have(tmp_path: Path) -> None:
    plain = FineTuning(model="m", base="m", result="ft:m", seed=1)
    asking = FineTuning.model_validate(plain.model_dump() | {"wandb": {"project": "p"}})
    both = Settings(data_dir=tmp_path, mlflow_url="http://m", wandb_mode="offline")

    assert tracking.trackers_of(Settings(data_dir=tmp_path), asking) == []
    assert tracking.trackers_of(both, plain) == ["mlflow"]
    assert tracking.trackers_of(both, asking) == ["mlflow", "wandb"]


# -- MLflow


@pytest.fixture
def mlflow() -> Iterator[FakeMlflow]:
    with fake_mlflow.serving() as server:
        yield server


def tracker_of(mlflow: FakeMlflow, token: str = "") -> MlflowTracker:
    return MlflowTracker(Settings(mlflow_url=mlflow.url, mlflow_token=token))


def test_a_training_is_a_run_of_its_projects_experiment(job: TrackedJob, mlflow: FakeMlflow) -> None:
    job.train(range(1, 252))
    job.send(tracker_of(mlflow))
    job.end()
    job.send(tracker_of(mlflow))

    (run,) = mlflow.runs
    assert mlflow.experiments == ["nightmill-p"]
    assert run["tags"] == {"mlflow.runName": RESULT, "nightmill_job_id": JOB}
    assert (run["status"], run["params"]["base"], run["params"]["rank"]) == ("FINISHED", "tiny", "16")
    assert mlflow.steps() == list(range(1, 252))
    assert mlflow.steps("valid/loss") == list(range(5, 252, 5))
    assert job.warnings() == []


@pytest.mark.parametrize("path", ["runs/create", "runs/log-batch", "runs/update", "experiments/create"])
def test_retry_after_lost_response_creates_no_duplicate(job: TrackedJob, mlflow: FakeMlflow, path: str) -> None:
    job.train(range(1, 252))
    job.end()
    mlflow.lose = path
    job.send(tracker_of(mlflow))
    assert job.row.failures == 1

    job.send(tracker_of(mlflow))

    assert mlflow.experiments == ["nightmill-p"]
    assert mlflow.steps() == list(range(1, 252))
    assert mlflow.runs[0]["status"] == "FINISHED"


@pytest.mark.parametrize(
    ("token", "header"), [("", None), ("t", "Bearer t"), ("user:password", "Basic dXNlcjpwYXNzd29yZA==")]
)
def test_tracking_token_sets_authorization_header(
    job: TrackedJob, mlflow: FakeMlflow, token: str, header: str | None
) -> None:
    job.send(tracker_of(mlflow, token))

    assert mlflow.authorization == {header}


def test_a_server_that_refuses_is_named_by_its_status_alone(job: TrackedJob, mlflow: FakeMlflow) -> None:
    mlflow.status = 403

    job.send(tracker_of(mlflow))

    assert "status 403" in job.warnings()[0]
    assert mlflow.url not in job.warnings()[0]


# -- Weights & Biases


def test_missing_library_is_reported_to_client_as_warning(sqlite: Database, tmp_path: Path) -> None:
    job = TrackedJob(sqlite, tmp_path, tracking.WANDB, wandb_mode="offline")
    tracker = WandbTracker(job.context.config, job.context.storage, "/usr/bin/false")
    job.train(range(1, 4))
    job.end()

    assert job.send(tracker)

    assert job.warnings()[0].startswith("Weights & Biases did not take the steps: its library failed")
