"""Online evaluations to the end of their rounds: the real API, dispatcher and workers over a fake engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.inference import shadow_answers
from jobs.inference.shadow_answers import pair_of
from jobs.inference.tables import ShadowAnswer
from jobs.monitoring.tables import OnlineEvaluation, OnlineRound
from jobs.webhooks.tables import Event
from tests.support.eval_client import SCORE, World, evaluating
from tests.support.web import keep_completion_in

POLITE = {
    "type": "string_check",
    "name": "polite",
    "input": "{{ sample.output_text }} {{ item.input }}",
    "operation": "ilike",
    "reference": "please",
}


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path) as world:
        yield world


def post(world: World, path: str, **body: Any) -> Any:
    return world.client.post(path, body=body, cast_to=object)


def create(world: World, *criteria: dict[str, Any], config: Any = None, **fields: Any) -> Any:
    config = config or {"type": "logs"}
    made = world.client.evals.create(name="e", data_source_config=config, testing_criteria=list(criteria))
    fields = {"source": {"type": "stored_completions"}, **fields}
    return post(world, "/online_evaluations", name="n", eval_id=made.id, share=100, **fields)


def keep(world: World, said: str, count: int) -> None:
    """Store answers of an hour ago to questions."""
    for number in range(count):
        facts = {"said": f"{said} {number}", "created_at": now() - 3600 + number}
        keep_completion_in(world.inline.db, world.inline.storage, "default", **facts)


def begin(world: World, evaluation: Any, *, since: float) -> None:
    """Let a round over the answers since a time be due."""
    with world.inline.db.write() as session:
        row = session.get_one(OnlineEvaluation, evaluation["id"])
        row.next_at, row.marked_at = now() - 1, since


def rounds_of(world: World, evaluation: Any) -> list[Any]:
    answer: Any = world.client.get(f"/online_evaluations/{evaluation['id']}/rounds", cast_to=object)
    return list(answer["data"])


def finish_round(world: World, evaluation: Any, *, since: float | None = None) -> Any:
    """Return the next round at its end."""
    count = len(rounds_of(world, evaluation))
    begin(world, evaluation, since=now() - 7200 if since is None else since)

    def has_ended() -> bool:
        with world.inline.db.read() as session:
            own = OnlineRound.online_evaluation_id == evaluation["id"], OnlineRound.ended_at.is_not(None)
            return len(session.scalars(select(OnlineRound.id).where(*own)).all()) > count

    world.inline.until(has_ended, timeout=120)
    return rounds_of(world, evaluation)[0]


def forget_answers(world: World) -> None:
    """Delete the stored answers, so that the next round has others."""
    for completion in world.client.chat.completions.list():
        world.client.chat.completions.delete(completion.id)


def events_of(world: World, evaluation: Any) -> list[str]:
    with world.inline.db.read() as session:
        own = select(Event.type).where(Event.subject_id == evaluation["id"]).order_by(Event.seq)
        return list(session.scalars(own))


def show(world: World, evaluation: Any) -> Any:
    return world.client.get(f"/online_evaluations/{evaluation['id']}", cast_to=object)


def test_rounds_grade_answers_and_tell_once_of_each_crossing(world: World) -> None:
    evaluation = create(world, POLITE, threshold={"minimum": 0.8, "window": 20})

    keep(world, "Refund me, please", 15)
    keep(world, "Refund me", 10)
    first = finish_round(world, evaluation)

    assert (first["status"], first["answers"], first["passed"], first["failed"]) == ("completed", 25, 15, 10)
    assert first["low"] < first["pass_rate"] == 0.6 < first["high"]
    assert first["per_testing_criteria"][0]["passed"] == 15
    assert events_of(world, evaluation) == ["online_evaluation.alert"]

    forget_answers(world)
    keep(world, "Refund me", 20)
    finish_round(world, evaluation)
    assert (show(world, evaluation)["value"], show(world, evaluation)["is_alerting"]) == (0.0, True)
    assert events_of(world, evaluation) == ["online_evaluation.alert"]

    forget_answers(world)
    keep(world, "Refund me, please", 20)
    finish_round(world, evaluation)
    assert (show(world, evaluation)["value"], show(world, evaluation)["is_alerting"]) == (1.0, False)
    assert events_of(world, evaluation) == ["online_evaluation.alert", "online_evaluation.resolved"]


def test_round_of_shadow_grades_its_answers_by_those_of_clients(world: World) -> None:
    same = {
        "type": "string_check",
        "name": "same",
        "input": "{{ sample.output_text }}",
        "operation": "eq",
        "reference": "{{ item.answer }}",
    }
    source = {"type": "shadow", "alias": "support"}
    item = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    config: Any = {"type": "custom", "item_schema": item, "include_sample_schema": True}
    evaluation = create(world, same, source=source, config=config)
    with world.inline.db.write() as session:
        project_id = session.scalars(select(OnlineEvaluation.project_id)).one()
        for alias, said in (("support", "Yes"), ("support", "Yes"), ("support", "No"), ("sales", "No")):
            given = [{"role": "user", "content": "May I?"}]
            pair = pair_of(project_id, alias, given=given, answer="Yes", model="rival", output_text=said)
            assert pair is not None
            shadow_answers.write(session, [pair])
        session.execute(update(ShadowAnswer).values(created_at=now() - 600))

    done = finish_round(world, evaluation)

    assert (done["status"], done["answers"], done["passed"], done["failed"]) == ("completed", 3, 2, 1)
    items = world.client.evals.runs.output_items.list(done["id"], eval_id=done["eval_id"]).data
    assert items[0].datasource_item["input"] == [{"role": "user", "content": "May I?"}]
    assert {item.sample.output[0].content for item in items} == {"Yes", "No"}
    begin(world, evaluation, since=now() - 30)
    world.inline.until(lambda: show(world, evaluation)["next_round_at"] > now(), timeout=60)
    assert len(rounds_of(world, evaluation)) == 1  # no pair is newer


def test_fewer_graded_answers_than_the_window_raise_no_alert(world: World) -> None:
    evaluation = create(world, POLITE, threshold={"minimum": 0.8, "window": 20})
    keep(world, "Refund me", 19)

    done = finish_round(world, evaluation)

    assert (done["pass_rate"], show(world, evaluation)["value"], events_of(world, evaluation)) == (0.0, None, [])


def test_mean_score_of_a_judge_below_the_minimum_raises_an_alert(world: World) -> None:
    world.verdicts[:] = [3.0]
    threshold = {"measure": "mean_score", "criterion": "score", "minimum": 4, "window": 20}
    evaluation = create(world, SCORE, threshold=threshold)
    keep(world, "Refund me", 20)

    done = finish_round(world, evaluation)

    assert done["per_testing_criteria"][0]["mean_score"] == pytest.approx(3.0)
    assert show(world, evaluation)["value"] == pytest.approx(3.0)
    assert events_of(world, evaluation) == ["online_evaluation.alert"]


def test_no_answer_is_graded_twice(world: World) -> None:
    evaluation = create(world, POLITE)
    keep(world, "Refund me", 12)
    first = finish_round(world, evaluation)

    with world.inline.db.read() as session:
        marked = session.get_one(OnlineEvaluation, evaluation["id"]).marked_at
    keep_completion_in(world.inline.db, world.inline.storage, "default", said="Late", created_at=marked)
    second = finish_round(world, evaluation, since=marked)

    assert (first["answers"], second["answers"]) == (12, 1)


def test_eval_deleted_while_a_round_runs_ends_it_with_a_reason(world: World) -> None:
    evaluation = create(world, POLITE)
    keep(world, "Refund me", 5)
    world.inline.elsewhere = lambda task, _queue, _arguments: task == "plan"  # no worker takes the run
    begin(world, evaluation, since=now() - 7200)
    world.inline.until(lambda: bool(rounds_of(world, evaluation)), timeout=60)

    world.client.evals.delete(evaluation["eval_id"])
    world.inline.elsewhere = lambda *_: False
    world.inline.until(lambda: rounds_of(world, evaluation)[0]["status"] != "in_progress", timeout=60)

    assert rounds_of(world, evaluation)[0]["error"] == "The run was deleted, or its eval."
    begin(world, evaluation, since=now() - 7200)
    world.inline.until(lambda: bool(show(world, evaluation)["last_error"]), timeout=60)
    assert "No eval found" in show(world, evaluation)["last_error"]
