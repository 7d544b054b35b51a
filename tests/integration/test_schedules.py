"""Schedules of pipelines and of runs of evals: the dispatcher fires them, workers run what they submit to its end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.ledger.tables import Job
from jobs.schedules.tables import Schedule
from tests.support.eval_client import SAME, World, evaluating, items
from tests.support.inline_deployment import MODEL, chat_line, jsonl
from tests.support.pipeline_requests import batch_step, run_step


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path) as world:
        yield world


def upload(world: World, purpose: Any, lines: list[Any]) -> str:
    return world.client.files.create(file=("lines.jsonl", jsonl(lines)), purpose=purpose).id


def create(world: World, kind: str, **request: Any) -> Any:
    body = {"cron": "0 3 * * *", "job": {"type": kind, **request}}
    return world.client.post("/schedules", body=body, cast_to=object)


def run(world: World, schedule: Any) -> Any:
    """Let a schedule be due and run what it submits to its end; return it."""
    with world.inline.db.write() as session:
        session.execute(update(Schedule).values(next_at=now() - 1))
    before = retrieve(world, schedule)["last_job_id"]
    world.inline.until(lambda: retrieve(world, schedule)["last_job_id"] != before)
    fired = retrieve(world, schedule)
    world.inline.drain(fired["last_job_id"], timeout=60)
    return fired


def retrieve(world: World, schedule: Any) -> Any:
    return world.client.get(f"/schedules/{schedule['id']}", cast_to=object)


def jobs_of(world: World, schedule: Any) -> list[str]:
    with world.inline.db.read() as session:
        return [job.id for job in session.query(Job).where(Job.schedule_id == schedule["id"]).order_by(Job.created_at)]


def test_schedule_of_an_eval_run_grades_the_items_each_time(world: World) -> None:
    request = run_step("", world.eval(SAME), upload(world, "evals", items("a", "b")), MODEL)["request"]
    schedule = create(world, "eval_run", **request)

    ids = [run(world, schedule)["last_job_id"] for _ in range(2)]

    assert jobs_of(world, schedule) == ids
    for run_id in ids:
        graded: Any = world.client.evals.runs.retrieve(run_id, eval_id=request["eval_id"])
        assert (graded.status, graded.result_counts.total, graded.result_counts.passed) == ("completed", 2, 2)


def test_schedule_of_a_pipeline_runs_all_steps(world: World) -> None:
    lines = [chat_line(f"q{number}", f"How do I reset router {number}?") for number in range(3)]
    check = run_step("check", world.eval(SAME), upload(world, "evals", items("a")), MODEL)
    check["request"]["metadata"] = {"answers": "{{answer.output_file_id}}"}
    steps = [batch_step("answer", upload(world, "batch", lines)), check]
    schedule = create(world, "pipeline", name="nightly", steps=steps)

    fired = run(world, schedule)

    pipeline: Any = world.client.get(f"/pipelines/{fired['last_job_id']}", cast_to=object)
    assert (pipeline["name"], pipeline["status"]) == ("nightly", "completed")
    assert [step["status"] for step in pipeline["steps"]] == ["completed", "completed"]
    answers = world.client.batches.retrieve(pipeline["steps"][0]["job_id"])
    assert answers.request_counts is not None
    assert answers.request_counts.completed == 3
    assert jobs_of(world, schedule) == [pipeline["id"]]
