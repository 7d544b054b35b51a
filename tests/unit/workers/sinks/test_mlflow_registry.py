"""Versions of tuned models in MLflow's registry. `tests/sdk/test_tracking.py` has the real server."""

from collections.abc import Iterator

import pytest

from jobs.db.engine import Database
from jobs.finetuning.tables import FinetuneTracking
from jobs.ledger import feed
from jobs.settings import Settings
from jobs.webhooks.tables import Event
from tests.support import fake_mlflow
from tests.support.fake_mlflow import FakeMlflow
from tests.support.tuned_versions import FAMILY, moved, project_of, trained
from workers.sinks.mlflow_registry import MlflowRegistry
from workers.sinks.sink import EventRefused, SinkUnavailable

NAME = f"Support%3A{FAMILY.replace(':', '%3A')}"


@pytest.fixture
def mlflow() -> Iterator[FakeMlflow]:
    with fake_mlflow.serving() as server:
        yield server


def registry_of(mlflow: FakeMlflow) -> MlflowRegistry:
    return MlflowRegistry(Settings(mlflow_url=f"{mlflow.url}/", mlflow_token="t"))


def send(db: Database, mlflow: FakeMlflow, project: str) -> list[bool]:
    """Send all events of a project, and return for each whether anything was sent."""
    return [registry_of(mlflow).send(db, event) for event in events_of(db, project)]


def events_of(db: Database, project: str) -> list[Event]:
    with db.read() as session:
        return [*feed.after(session, project, 0, 100)]


def stages(mlflow: FakeMlflow) -> dict[str, str]:
    return {version["version"]: version["tags"]["nightmill_stage"] for version in mlflow.versions}


def test_a_version_is_registered_with_its_lineage_and_run(sqlite: Database, mlflow: FakeMlflow) -> None:
    project = project_of(sqlite)
    with sqlite.write() as session:
        run = {"step": 9, "failures": 0, "due_at": None, "run_id": "run7"}
        session.add(FinetuneTracking(job_id="ftjob-abcdefghi1", tracker="mlflow", **run))
    name = trained(sqlite, project, "abcdefghi1")

    sent = send(sqlite, mlflow, project)

    (version,) = mlflow.versions
    assert sent == [False, False, False, True]  # the moves of the job, of which the last is its success
    assert (version["name"], version["run_id"]) == (NAME, "run7")
    assert version["tags"].pop("nightmill_id").startswith("ftmodel_")
    assert version["tags"] == {
        "nightmill_model": name,
        "nightmill_sha256": "1" * 64,
        "nightmill_job_id": "ftjob-abcdefghi1",
        "nightmill_number": "1",
        "nightmill_stage": "none",
        "nightmill_base": "smollm2",
        "nightmill_dataset": "file-rows",
    }
    assert mlflow.authorization == {"Bearer t"}


def test_aliases_follow_the_stages_of_versions(sqlite: Database, mlflow: FakeMlflow) -> None:
    project = project_of(sqlite)
    first, second = (trained(sqlite, project, f"abcdefghi{n}") for n in (1, 2))
    moved(sqlite, project, first, "production")
    moved(sqlite, project, second, "staging")
    send(sqlite, mlflow, project)
    before = dict(mlflow.aliases[NAME])
    mlflow.aliases[NAME]["champion"] = "1"  # of somebody else

    moved(sqlite, project, second, "production")
    send(sqlite, mlflow, project)
    moved(sqlite, project, second, "none")
    after = dict(mlflow.aliases[NAME])
    send(sqlite, mlflow, project)

    assert before == {"production": "1", "staging": "2"}
    assert after == {"production": "2", "champion": "1"}
    assert mlflow.aliases[NAME] == {"champion": "1"}
    assert stages(mlflow) == {"1": "archived", "2": "none"}


@pytest.mark.parametrize(
    "path",
    [
        *("registered-models/create", "model-versions/create", "model-versions/set-tag"),
        *("registered-models/alias", "registered-models/alias/delete"),
    ],
)
def test_lost_answer_of_the_server_leads_to_a_single_version(sqlite: Database, mlflow: FakeMlflow, path: str) -> None:
    project = project_of(sqlite)
    name = trained(sqlite, project, "abcdefghi1")
    deletes, sets = path.endswith("delete"), path.endswith("set-tag")
    if deletes or sets:
        moved(sqlite, project, name, "staging")
        send(sqlite, mlflow, project)
    moved(sqlite, project, name, "archived" if deletes else "production")

    mlflow.lose = path
    with pytest.raises(SinkUnavailable, match="cannot be reached"):
        send(sqlite, mlflow, project)
    send(sqlite, mlflow, project)

    assert stages(mlflow) == {"1": "archived" if deletes else "production"}
    assert mlflow.aliases == {NAME: {} if deletes else {"production": "1"}}


@pytest.mark.parametrize(("status", "failure"), [(503, SinkUnavailable), (401, SinkUnavailable), (400, EventRefused)])
def test_a_refusal_of_the_server_is_final_only_for_a_bad_request(
    sqlite: Database, mlflow: FakeMlflow, status: int, failure: type[Exception]
) -> None:
    project = project_of(sqlite)
    trained(sqlite, project, "abcdefghi1")
    mlflow.status = status

    with pytest.raises(failure, match=f"status {status}"):
        send(sqlite, mlflow, project)


def test_families_of_two_projects_are_two_registered_models(sqlite: Database, mlflow: FakeMlflow) -> None:
    for n, name in enumerate(["Support", "Sales / EMEA"], 1):
        project = project_of(sqlite, name)
        trained(sqlite, project, f"abcdefghi{n}")
        send(sqlite, mlflow, project)

    assert [version["name"] for version in mlflow.versions] == [NAME, "Sales %2F EMEA%3Asmollm2%3Arefunds"]
    assert [version["version"] for version in mlflow.versions] == ["1", "1"]
