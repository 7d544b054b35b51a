"""The run events of jobs, at a receiver of HTTP requests."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from jobs.datasets.tables import DatasetFile, DatasetVersion
from jobs.db.engine import Database
from jobs.ledger import feed, ledger
from jobs.retrieval.tables import VectorStoreFile
from jobs.settings import Settings
from jobs.webhooks.tables import Event
from tests.support.openlineage_schema import check_run_event
from tests.support.receiver import Receiver
from tests.support.sample_jobs import close, finishing, planning, running, submitted
from tests.support.system import free_port
from tests.support.tuned_versions import number_events, project_of, trained
from workers.sinks.openlineage import OpenLineage, run_id
from workers.sinks.sink import EventRefused, SinkUnavailable


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def events_of(db: Database, project: str = "proj_1") -> list[Event]:
    number_events(db)
    with db.read() as session:
        return [*feed.after(session, project, 0, 100)]


def received(db: Database, receiver: Receiver, project: str = "proj_1", key: str = "") -> list[dict[str, Any]]:
    """Return what a server receives of all events of a project, each a valid run event."""
    before = len(receiver.requests)
    sink = OpenLineage(Settings(openlineage_url=receiver.url("ok"), openlineage_api_key=key))
    for event in events_of(db, project):
        sink.send(db, event)
    requests = receiver.requests[before:]
    assert {request.path for request in requests} <= {"/ok/api/v1/lineage"}
    return [check_run_event(json.loads(request.body)) for request in requests]


def names(things: list[dict[str, Any]]) -> list[str]:
    return [thing["name"] for thing in things]


def versions(things: list[dict[str, Any]]) -> dict[str, str | None]:
    return {thing["name"]: thing["facets"].get("version", {}).get("datasetVersion") for thing in things}


def test_a_batch_is_a_run_that_reads_a_file_and_writes_another(sqlite: Database, receiver: Receiver) -> None:
    columns = {"input_file_id": "file-in", "model": "smollm2", "payload": {"dataset": "dataset:refunds@3/test"}}
    job = finishing(sqlite, **columns)
    close(sqlite, job.id, output_file_id="file-out", error_file_id="file-errors")

    start, complete = received(sqlite, receiver, key="s3cret")

    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"] == run_id(job.id)
    assert start["job"]["namespace"] == "nightmill/proj_1"
    assert start["job"]["name"] == f"generation.{job.id}"
    assert names(start["inputs"]) == ["files/file-in", "datasets/refunds", "models/smollm2"]
    assert versions(complete["inputs"])["datasets/refunds"] == "3"
    assert (start["outputs"], names(complete["outputs"])) == ([], ["files/file-out", "files/file-errors"])
    assert complete["eventTime"] >= start["eventTime"]
    assert receiver.requests[-1].headers["authorization"] == "Bearer s3cret"


def test_an_event_that_is_sent_twice_is_the_same(sqlite: Database, receiver: Receiver) -> None:
    close(sqlite, finishing(sqlite).id)

    assert received(sqlite, receiver) == received(sqlite, receiver)


def test_a_job_that_never_ran_begins_and_fails_with_the_code_alone(sqlite: Database, receiver: Receiver) -> None:
    claim = planning(sqlite)
    with sqlite.write() as session:
        error = {"code": "invalid_json_line", "message": "Line 1 is not JSON: 'Mrs Miller'", "line": 1}
        ledger.reject(session, claim, [error])

    start, fail = received(sqlite, receiver)

    assert (start["eventType"], fail["eventType"]) == ("START", "FAIL")
    assert fail["run"]["facets"]["errorMessage"]["message"] == "invalid_json_line"
    assert "Miller" not in json.dumps(fail)


def test_a_cancelled_job_is_aborted(sqlite: Database, receiver: Receiver) -> None:
    job = running(sqlite)
    with sqlite.write() as session:
        ledger.cancel(session, job.id, actor="test")
    close(sqlite, job.id)

    assert [event["eventType"] for event in received(sqlite, receiver)] == ["START", "ABORT"]


def test_child_names_the_parent_and_jobs_of_a_schedule_share_a_name(sqlite: Database, receiver: Receiver) -> None:
    parent = submitted(sqlite, kind="pipeline", id="pipe_1")
    close(sqlite, finishing(sqlite, parent_id=parent.id, schedule_id="sched_1").id)

    child = received(sqlite, receiver)[-1]

    facet = child["run"]["facets"]["parent"]
    assert (facet["run"], facet["job"]["name"]) == ({"runId": run_id("pipe_1")}, "pipeline.pipe_1")
    assert child["job"]["name"] == "generation.sched_1"


def test_a_training_reads_data_and_its_base_and_writes_a_model(sqlite: Database, receiver: Receiver) -> None:
    project = project_of(sqlite)
    model = trained(sqlite, project, "abcdefghi1", dataset="dataset:refunds@3/train")

    complete = received(sqlite, receiver, project)[-1]

    assert versions(complete["inputs"]) == {
        "files/file-rows": "d" * 64,
        "datasets/refunds": "3",
        "models/smollm2": None,
        "models/tiny": None,  # the model of the sample job's shards
    }
    assert versions(complete["outputs"]) == {f"models/{model}": "1" * 64}


def test_files_of_a_vector_store_a_dataset_and_a_promotion_are_named(sqlite: Database, receiver: Receiver) -> None:
    made = {"dataset_id": "ds_1", "name": "refunds", "number": 3}
    with sqlite.write() as session:
        file = {"store_id": "vs_1", "project_id": "proj_1", "filename": "a.txt", "status": "in_progress"}
        file |= {"created_at": 1.0, "chunking": {}, "line": 0, "version": "v"}
        session.add(VectorStoreFile(id="file-doc", job_id="vsfb_1", **file))
        version = {"sources": [], "deduplicate": False, "created_by": "key:1", "created_at": 1.0}
        session.add(DatasetVersion(id="dsv_1", dataset_id="ds_1", number=3, **version))
        rows = {"version_id": "dsv_1", "position": 0}
        session.add(DatasetFile(role="source", name="", file_id="file-raw", **rows))
        session.add(DatasetFile(role="split", name="train", file_id="file-train", sha256="e" * 64, **rows))
    payloads: dict[str, tuple[str, dict[str, Any]]] = {
        "ingestion": ("vsfb_1", {"store_id": "vs_1"}),
        "dataset": ("dsv_1", {**made, "sources": [], "split": {}, "seed": 0}),
        "evaluation": ("evalrun_1", {"eval_id": "eval_1", "items": "i", "item_schema": {}, "criteria": []}),
        "promotion": ("promo_1", {"target": {"type": "index", "id": "vs_1", "index_id": "vs_2"}}),
    }
    payloads["evaluation"][1]["sampled"] = {"endpoint": "/v1/chat/completions", "model": "ft:smollm2"}
    for kind, (job_id, payload) in payloads.items():
        running(sqlite, id=job_id, kind=kind, payload=payload, model=None)

    starts = {event["job"]["name"].partition(".")[0]: event for event in received(sqlite, receiver)}

    assert names(starts["ingestion"]["inputs"]) == ["files/file-doc"]
    assert names(starts["dataset"]["inputs"]) == ["files/file-raw"]
    assert names(starts["evaluation"]["inputs"]) == ["models/ft:smollm2"]
    assert names(starts["promotion"]["inputs"]) == ["vector_stores/vs_1"]


def test_background_responses_have_no_run_events(sqlite: Database, receiver: Receiver) -> None:
    running(sqlite, kind="response", id="resp_1", payload={})

    assert received(sqlite, receiver) == []


@pytest.mark.parametrize(
    ("path", "failure"),
    [("500", SinkUnavailable), ("reset", SinkUnavailable), ("redirect", SinkUnavailable), ("422", EventRefused)],
)
def test_a_failure_of_the_server_is_final_only_for_an_event_that_is_not_valid(
    sqlite: Database, receiver: Receiver, path: str, failure: type[Exception]
) -> None:
    running(sqlite)
    begun = events_of(sqlite)[-1]

    with pytest.raises(failure):
        OpenLineage(Settings(openlineage_url=receiver.url(path))).send(sqlite, begun)


def test_server_that_is_down_gets_the_event_later(sqlite: Database) -> None:
    running(sqlite)
    begun = events_of(sqlite)[-1]

    with pytest.raises(SinkUnavailable, match="cannot be reached"):
        OpenLineage(Settings(openlineage_url=f"http://127.0.0.1:{free_port()}")).send(sqlite, begun)


@pytest.mark.parametrize("url", ["marquez:5000", "ftp://marquez", "http://user:key@marquez:5000"])
def test_a_url_that_is_no_server_or_has_a_key_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ValueError, match="openlineage_url"):
        Settings(openlineage_url=url)


def test_the_schema_of_the_tests_refuses_an_event_without_its_run(sqlite: Database, receiver: Receiver) -> None:
    running(sqlite)
    (start,) = received(sqlite, receiver)

    with pytest.raises(jsonschema.ValidationError):
        check_run_event({**start, "run": {"runId": "batch_1"}})
