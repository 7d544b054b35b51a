"""The SDK's whole `evals` surface, against the real API, dispatcher and workers over a fake engine."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from jobs.db.engine import Database
from tests.support.evaluating import SAME, SCORE, World, evaluating, items


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path) as world:
        yield world


def test_evals_runs_and_output_items(world: World) -> None:
    evals = world.client.evals
    eval_id = world.eval(SAME, SCORE, metadata={"team": "a"})
    other_id = world.eval(SAME)
    renamed = evals.update(eval_id, name="renamed", metadata={"team": "b"})
    run = world.run(eval_id, items("a", "b") + items("c", right=False))
    cancelled = evals.runs.cancel(world.run(eval_id, items("d")).id, eval_id=eval_id)

    done = world.ended(run)

    assert (renamed.name, renamed.metadata, evals.retrieve(eval_id).name) == ("renamed", {"team": "b"}, "renamed")
    assert [row.id for row in evals.list(limit=1, order="desc", order_by="updated_at")] == [eval_id, other_id]
    assert (done.status, done.object, done.eval_id, done.name) == ("completed", "eval.run", eval_id, "r")
    assert (done.result_counts.total, done.result_counts.passed, done.result_counts.failed) == (3, 2, 1)
    assert done.data_source.type == "completions"
    assert cancelled.status == "canceled"
    assert [row.id for row in evals.runs.list(eval_id, status="completed")] == [run.id]
    assert [row.id for row in evals.runs.list(eval_id, limit=1)] == [run.id, cancelled.id]
    listed = list(evals.runs.output_items.list(run.id, eval_id=eval_id, limit=1, order="desc"))
    assert [item.datasource_item_id for item in listed] == [2, 1, 0]
    item = evals.runs.output_items.retrieve(listed[0].id, eval_id=eval_id, run_id=run.id)
    assert (item.status, item.object, [result.name for result in item.results]) == (
        "fail",
        "eval.run.output_item",
        ["same", "score"],
    )
    assert evals.runs.delete(run.id, eval_id=eval_id).deleted
    assert evals.delete(eval_id).deleted
    with pytest.raises(openai.NotFoundError):
        evals.retrieve(eval_id)
