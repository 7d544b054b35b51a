"""Retries of runs: what errored is asked and graded again, and what was graded stays."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.ledger import ledger, shards
from jobs.ledger.tables import Segment
from jobs.queues import Queue, Task
from tests.support.eval_client import JUDGE, SAME, SCORE, World, evaluating, items
from tests.support.inline_deployment import MODEL
from workers.batches import running
from workers.engines.port import refusal

BROKEN = refusal(500, "It broke.", code="server_error")


@pytest.fixture
def make_world(db: Database, tmp_path: Path) -> Iterator[Callable[..., World]]:
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(evaluating(db, tmp_path, **settings))


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


def retry(world: World, run: Any, **body: Any) -> Any:
    job = world.client.post(f"/jobs/{run.id}/retry", cast_to=dict[str, Any], body=body)
    assert job["retry_of"] == run.id
    return world.client.evals.runs.retrieve(job["id"], eval_id=run.eval_id)


def asked_models(world: World) -> list[str]:
    return sorted(request.body["model"] for request in world.asked)


def counts_of(run: Any) -> tuple[int, int, int]:
    return run.result_counts.passed, run.result_counts.failed, run.result_counts.errored


def grades_of(rows: list[Any]) -> list[tuple[int, str, list[float | None]]]:
    return [(row.datasource_item_id, row.status, [result.score for result in row.results]) for row in rows]


def test_retry_calls_only_failed_judge(world: World) -> None:
    world.verdicts[:] = [BROKEN, 9.0]
    run = world.ended(world.run(world.eval(SAME, SCORE), items("a", "b") + items("c", right=False)))
    before = world.output(run)
    world.asked.clear()

    again = world.ended(retry(world, run))

    assert (counts_of(run), counts_of(again)) in [((1, 1, 1), (2, 1, 0)), ((2, 0, 1), (2, 1, 0))]
    assert asked_models(world) == [JUDGE]
    assert {usage.run_model_name: usage.invocation_count for usage in again.per_model_usage} == {MODEL: 0, JUDGE: 1}
    assert [(row.passed + row.failed) for row in again.per_testing_criteria_results] == [3, 3]
    after = world.output(again)
    kept = [n for n, row in enumerate(before) if row.status != "error"]
    assert [grades_of(after)[n] for n in kept] == [grades_of(before)[n] for n in kept]
    assert [row.sample.output for row in after] == [row.sample.output for row in before]
    assert {row.run_id for row in after} == {again.id}
    assert not {row.id for row in after} & {row.id for row in before}
    first = world.client.evals.runs.output_items.retrieve(after[0].id, eval_id=run.eval_id, run_id=again.id)
    assert first.datasource_item_id == 0
    assert world.output(run) == before


def test_retry_resamples_failed_item_and_judges_its_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model breaks twice on one item, so the retry is retried too."""
    monkeypatch.setattr(running, "MAX_TRIES", 1)
    run = world.ended(world.run(world.eval(SAME, SCORE), items("a", "!flaky2 b", "c")))
    world.asked.clear()

    second = world.ended(retry(world, run))
    asked_of_second = asked_models(world)
    world.asked.clear()
    third = world.ended(retry(world, second))

    assert [counts_of(each) for each in (run, second, third)] == [(2, 0, 1), (2, 0, 1), (3, 0, 0)]
    assert asked_of_second == [MODEL]
    assert asked_models(world) == [MODEL, JUDGE]
    assert [row.datasource_item_id for row in world.output(third)] == [0, 1, 2]
    with pytest.raises(openai.BadRequestError) as refused:
        retry(world, third)
    assert refused.value.code == "nothing_to_retry"


def test_items_that_a_cancelled_run_left_are_graded(world: World) -> None:
    world.inline.elsewhere = lambda _task, queue, _arguments: queue == Queue.EVALUATE
    run = world.run(world.eval(SAME, SCORE), items("a", "b"))
    world.inline.until(lambda: world.inline.job(run.id).state == "running", 60)
    with pytest.raises(openai.ConflictError):
        retry(world, run)
    world.client.evals.runs.cancel(run.id, eval_id=run.eval_id)
    world.inline.drain(run.id, timeout=60)
    world.inline.elsewhere = lambda *_: False
    world.asked.clear()

    again = world.ended(retry(world, run))

    assert (again.status, counts_of(again), world.asked) == ("completed", (2, 0, 0), [])


@pytest.mark.verify
@pytest.mark.parametrize("body", [{"which": "all"}, {"which": "length"}, {"overrides": {"model": "x"}}])
def test_run_retry_refuses_selection_and_overrides(world: World, body: dict[str, Any]) -> None:
    world.verdicts[:] = [BROKEN]
    run = world.ended(world.run(world.eval(SCORE), items("a")))

    with pytest.raises(openai.BadRequestError) as refused:
        retry(world, run, **body)

    assert refused.value.code in ("invalid_value", "nothing_to_retry")


@pytest.mark.verify
def test_run_with_invalid_items_has_nothing_to_retry(world: World) -> None:
    run = world.ended(world.run(world.eval(SAME), [{"item": {"answer": 5}}]))

    with pytest.raises(openai.BadRequestError) as refused:
        retry(world, run)

    assert (run.status, refused.value.code) == ("failed", "nothing_to_retry")


def test_retry_of_run_deleted_before_start_fails(world: World) -> None:
    world.verdicts[:] = [BROKEN]
    run = world.ended(world.run(world.eval(SCORE), items("a")))
    again = retry(world, run)

    world.client.evals.runs.delete(run.id, eval_id=run.eval_id)
    done = world.ended(again)

    assert (done.status, done.error.code) == ("failed", "run_gone")


@pytest.mark.verify
@pytest.mark.parametrize("task", [Task.PLAN, Task.RUN, Task.FINISH])
def test_every_item_of_a_retry_is_graded_once_however_often_workers_die(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    """A worker that dies has claimed and never goes on: its claims are revoked, and later workers do the rest."""
    world = make_world(shard_lines=2, segment_seconds=0.001)
    world.verdicts[:] = [BROKEN, 2.0, BROKEN, 8.0]
    run = world.ended(world.run(world.eval(SAME, SCORE), items(*(f"q{n}" for n in range(5)))))
    died: set[str] = set()
    lock = threading.Lock()
    owner: Any = shards if task is Task.RUN else ledger
    work = owner.claim

    def claim(session: Any, job_id: str, *arguments: Any, **options: Any) -> Any:
        claimed = work(session, job_id, *arguments, **options)
        key = f"{job_id} {arguments[0]}"
        with lock:
            if claimed is None or key in died or (owner is ledger and arguments[0] != task):
                return claimed
            died.add(key)
        return None

    monkeypatch.setattr(owner, "claim", claim)
    again = world.ended(retry(world, run))

    assert (counts_of(run)[2], counts_of(again)) == (2, (4, 1, 0))
    assert died
    assert [row.datasource_item_id for row in world.output(again)] == list(range(5))
    with world.inline.db.read() as session:
        segments = session.scalars(select(Segment).where(Segment.job_id == again.id)).all()
    assert sum(int.from_bytes(segment.covered, "little").bit_count() for segment in segments) == 5
