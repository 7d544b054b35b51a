"""Pipelines to their end: the real API, dispatcher and workers over a fake engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.db.engine import Database
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Job
from tests.support.eval_client import SAME, World, evaluating, items
from tests.support.inline_deployment import MODEL, chat_line, jsonl
from tests.support.pipeline_requests import batch_step, run_step


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path) as world:
        yield world


def post(world: World, path: str, **body: Any) -> Any:
    return world.client.post(path, body=body, cast_to=object)


def get(world: World, pipeline: Any) -> Any:
    return world.client.get(f"/pipelines/{pipeline['id']}", cast_to=object)


def upload(world: World, purpose: Any, lines: list[Any]) -> str:
    return world.client.files.create(file=("lines.jsonl", jsonl(lines)), purpose=purpose).id


def questions(world: World) -> str:
    return upload(world, "batch", [chat_line(f"q{n}", f"How do I reset router {n}?") for n in range(3)])


def end(world: World, pipeline: Any) -> Any:
    """Run a pipeline to its end, with all jobs that were made for it, each step one; return it."""
    world.inline.drain(pipeline["id"], timeout=60)
    world.inline.until(lambda: all(job.state in TERMINAL for job in jobs(world)), timeout=60)
    parents = [job.parent_id for job in jobs(world) if str(job.parent_id).startswith("step_")]
    assert len(parents) == len(set(parents))
    return get(world, pipeline)


def jobs(world: World) -> list[Job]:
    with world.inline.db.read() as session:
        return session.query(Job).all()


def test_steps_run_in_their_order(world: World) -> None:
    check = run_step("check", world.eval(SAME), upload(world, "evals", items("a", "b")), MODEL)
    check["request"]["metadata"] = {"answers": "{{answer.output_file_id}}"}
    last = batch_step("last", questions(world), metadata={"score": "{{check.passed}} of {{check.total}}"})

    done = end(world, post(world, "/pipelines", steps=[last, batch_step("answer", questions(world)), check]))

    assert done["status"] == "completed"
    made = {step["name"]: step for step in done["steps"]}
    assert {step["status"] for step in made.values()} == {"completed"}
    assert made["last"]["after"] == ["check"]
    answers = world.client.batches.retrieve(made["answer"]["job_id"])
    run: Any = world.client.evals.runs.retrieve(made["check"]["job_id"], eval_id=check["request"]["eval_id"])
    assert run.metadata == {"answers": answers.output_file_id}
    assert run.created_at >= (answers.completed_at or 0)
    assert world.client.batches.retrieve(made["last"]["job_id"]).metadata == {"score": "2 of 2"}


def test_answers_of_a_step_become_rows_of_the_next_step(world: World) -> None:
    post(world, "/datasets", name="answers", split={"type": "random", "parts": [{"name": "all", "fraction": 1.0}]})
    sources = [{"type": "batch", "batch_id": "{{ answer.id }}"}]
    rows = {"name": "rows", "kind": "dataset", "request": {"dataset": "answers", "sources": sources}}
    criterion = {"type": "string_check", "name": "is about a router", "operation": "ilike", "reference": "router"}
    criterion["input"] = "{{ item.input }}"
    world.schema = {"type": "object", "properties": {"input": {"type": "array"}}}
    data = {"type": "jsonl", "source": {"type": "file_id", "id": "{{rows.reference}}/all"}}
    check = {"name": "check", "kind": "eval_run", "request": {"eval_id": world.eval(criterion), "data_source": data}}

    done = end(world, post(world, "/pipelines", steps=[check, rows, batch_step("answer", questions(world))]))

    made = {step["name"]: step for step in done["steps"]}
    assert (done["status"], made["rows"]["after"], made["check"]["after"]) == ("completed", ["answer"], ["rows"])
    run: Any = world.client.evals.runs.retrieve(made["check"]["job_id"], eval_id=check["request"]["eval_id"])  # type: ignore[index]
    assert (run.result_counts.total, run.result_counts.passed) == (3, 3)
    assert run.to_dict()["data_source"]["source"]["id"] == "dataset:answers@1/all"


def test_dataset_that_is_deleted_meanwhile_fails_its_step(world: World) -> None:
    post(world, "/datasets", name="answers")
    sources = [{"type": "batch", "batch_id": "{{answer.id}}"}]
    rows = {"name": "rows", "kind": "dataset", "request": {"dataset": "answers", "sources": sources}}
    made = post(world, "/pipelines", steps=[batch_step("answer", questions(world)), rows])
    world.client.delete("/datasets/answers", cast_to=object)

    done = end(world, made)

    assert (done["status"], done["steps"][1]["error"]["code"]) == ("failed", "dataset_not_found")


def test_failed_step_fails_the_pipeline_and_skips_later_steps(world: World) -> None:
    bad = upload(world, "batch", [{"custom_id": "q1", "method": "POST", "url": "/v1/embeddings", "body": {}}])
    made = post(
        world,
        "/pipelines",
        steps=[batch_step("a", bad), batch_step("b", questions(world), after=["a"])],
    )

    done = end(world, made)

    a, b = done["steps"]
    assert (done["status"], a["status"], b["status"], b["job_id"]) == ("failed", "failed", "skipped", None)
    assert a["error"]["code"] == world.client.batches.retrieve(a["job_id"]).errors.data[0].code  # type: ignore[union-attr, index]


def test_file_that_is_deleted_meanwhile_fails_its_step_until_the_pipeline_is_resumed(world: World) -> None:
    eval_id, file_id = world.eval(SAME), upload(world, "evals", items("a"))
    steps = [batch_step("a", questions(world)), run_step("b", eval_id, file_id, MODEL)]
    steps[1]["after"] = ["a"]
    made = post(world, "/pipelines", steps=steps)
    world.client.files.delete(file_id)

    done = end(world, made)

    a, b = done["steps"]
    assert (a["status"], b["status"], b["job_id"]) == ("completed", "failed", None)
    assert (b["error"]["code"], b["error"]["param"]) == ("file_not_found", "data_source.source.id")
    resumed = end(world, post(world, f"/pipelines/{made['id']}/resume"))
    assert (resumed["status"], resumed["steps"][0]) == ("failed", a)
    assert resumed["steps"][1]["id"] != b["id"]


def test_cancelled_pipeline_cancels_the_jobs_of_its_steps(world: World) -> None:
    made = post(world, "/pipelines", steps=[batch_step("a", questions(world)), batch_step("b", questions(world))])
    first = made["steps"][0]["id"]
    world.inline.elsewhere = lambda task, _queue, _arguments: task == "run"  # no worker takes a shard
    world.inline.until(lambda: any(job.parent_id == first for job in jobs(world)))

    post(world, f"/pipelines/{made['id']}/cancel")
    done = end(world, made)

    assert done["status"] == "cancelled"
    assert done["steps"][0]["status"] == "cancelled"
    assert {job.state for job in jobs(world)} == {"cancelled"}
