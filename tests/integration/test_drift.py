"""Monitors of drift to the end of their checks: the real API, dispatcher and workers over a fake engine."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from examples.corpus import docstrings
from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet.tables import Model
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Job
from jobs.monitoring import monitors
from jobs.queues import Queue
from tests.support.eval_client import JUDGE, World, evaluating
from tests.support.inline_deployment import MODEL, jsonl
from tests.support.web import keep_completion_in

TEXTS = [docstring.text for docstring in docstrings(480)]
#: The beginning of a text that nothing in the library is about, in another language.
GERMAN = "Wie kann ich meine Rechnung vom letzten Monat noch einmal herunterladen, ohne mich neu anzumelden?"


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path) as world:
        yield world


def post(world: World, path: str, **body: Any) -> Any:
    return world.client.post(path, body=body, cast_to=object)


def upload(world: World, texts: Sequence[str], **scores: float) -> dict[str, str]:
    lines = [{"input": text, **scores} for text in texts]
    file = world.client.files.create(file=("texts.jsonl", jsonl(lines)), purpose="user_data")
    return {"type": "file", "file_id": file.id}


def create_monitor(world: World, texts: Sequence[str], **fields: Any) -> Any:
    source = upload(world, texts, output_score=0.5)
    return post(world, "/drift_monitors", name="questions", source=source, embedding_model=MODEL, **fields)


def all_ended(world: World) -> bool:
    with world.inline.db.read() as session:
        return all(job.state in TERMINAL for job in session.query(Job))


def check(world: World, monitor: Any, texts: Sequence[str], **scores: float) -> Any:
    """Return the check of texts at its end."""
    path = f"/drift_monitors/{monitor['id']}/checks"
    made = post(world, path, source=upload(world, texts, **scores))
    world.inline.drain(made["id"], timeout=120)
    return world.client.get(f"{path}/{made['id']}", cast_to=object)


def test_check_of_like_texts_finds_no_drift(world: World) -> None:
    monitor = create_monitor(world, TEXTS[::2])

    done = check(world, monitor, TEXTS[1::2])

    assert (done["status"], done["is_drift"], done["error"]) == ("completed", False, None)
    assert [feature["name"] for feature in done["features"]] == ["embedding", "length", "language"]
    assert all(0 <= feature["value"] <= feature["limit"] for feature in done["features"])
    assert world.told(done["id"]) == ["drift.check.completed"]


def test_check_of_texts_in_another_language_finds_drift_and_tells_of_it(world: World) -> None:
    monitor = create_monitor(world, TEXTS[::2])
    texts = [f"{GERMAN} {number}" if number % 3 == 0 else text for number, text in enumerate(TEXTS[1::2])]

    done = check(world, monitor, texts, output_score=-0.5)

    drifts = {feature["name"] for feature in done["features"] if feature["is_drift"]}
    assert done["is_drift"]
    assert drifts >= {"embedding", "language", "output_score"}
    assert world.told(done["id"]) == ["drift.detected"]


def test_same_sample_is_drawn_from_more_texts_than_are_compared(world: World) -> None:
    monitor = create_monitor(world, TEXTS, sample=60)

    done = check(world, monitor, TEXTS)

    assert {feature["current_texts"] for feature in done["features"]} == {60}
    assert {feature["baseline_texts"] for feature in done["features"]} == {60}


def test_source_below_the_minimum_fails_its_baseline_and_refuses_checks(world: World) -> None:
    monitor = create_monitor(world, TEXTS[: monitors.MIN_TEXTS - 1])
    waiting = check(world, monitor, TEXTS)

    assert (waiting["status"], waiting["error"]["code"]) == ("failed", "dependency_failed")
    shown: Any = world.client.get(f"/drift_monitors/{monitor['id']}", cast_to=object)

    assert (shown["baseline"]["status"], shown["baseline"]["error"]["code"]) == ("failed", "too_few_texts")
    with pytest.raises(openai.ConflictError, match="make another one"):
        post(world, f"/drift_monitors/{monitor['id']}/checks")


def test_line_without_a_text_fails_the_check_with_its_number(world: World) -> None:
    monitor = create_monitor(world, TEXTS[::2])

    done = check(world, monitor, [*TEXTS[:60], " "])

    assert (done["status"], done["error"]["line"], done["error"]["param"]) == ("failed", 61, "input")


def test_questions_of_stored_answers_are_compared_with_their_feedback(world: World) -> None:
    for number, text in enumerate(TEXTS[:120]):
        facts = {"model": "support", "created_at": now() - (5_000 if number < 60 else 0)}
        name = keep_completion_in(world.inline.db, world.inline.storage, "default", said=text, **facts)
        target = {"type": "chat.completion", "completion_id": name}
        post(world, "/feedback", target=target, score=1 if number < 60 else -1)
    keep_completion_in(world.inline.db, world.inline.storage, "default", said=GERMAN, model="other")
    source = {"type": "stored_completions", "model": "support"}
    before = source | {"created_before": int(now() - 3_600)}
    monitor = post(
        world, "/drift_monitors", name="n", source=source, baseline=before, window_seconds=3_600, embedding_model=MODEL
    )

    made = post(world, f"/drift_monitors/{monitor['id']}/checks")
    world.inline.drain(made["id"], timeout=120)

    done: Any = world.client.get(f"/drift_monitors/{monitor['id']}/checks/{made['id']}", cast_to=object)
    features = {feature["name"]: feature for feature in done["features"]}
    assert {feature["current_texts"] for feature in features.values()} == {60}
    assert [name for name, feature in features.items() if feature["is_drift"]] == ["output_score"]


def test_promotion_in_a_pipeline_makes_another_baseline_only_where_it_moves_something(world: World) -> None:
    with world.inline.db.write() as session:
        for name in (MODEL, JUDGE):
            session.add(Model(id=name, queue=Queue.GENERATE, created_at=now(), seen_at=now()))
    post(world, "/aliases", id="support", model=JUDGE)
    monitor = create_monitor(world, TEXTS[::2])
    first = monitor["baseline"]["id"]
    world.inline.drain(first, timeout=120)
    target = {"type": "alias", "id": "support", "model": MODEL}
    steps = [
        {"name": "promote", "kind": "promotion", "request": {"target": target, "force": True, "reason": "better"}},
        {
            "name": "baseline",
            "kind": "drift_baseline",
            "after": ["promote"],
            "request": {"monitor_id": monitor["id"], "source": upload(world, TEXTS[1::2])},
        },
        {"name": "check", "kind": "drift_check", "request": {"monitor_id": "{{baseline.monitor_id}}"}},
    ]

    def run() -> tuple[list[str], str]:
        made = post(world, "/pipelines", steps=steps)
        world.inline.drain(made["id"], timeout=240)
        world.inline.until(lambda: all_ended(world), timeout=120)
        ended: Any = world.client.get(f"/pipelines/{made['id']}", cast_to=object)
        shown: Any = world.client.get(f"/drift_monitors/{monitor['id']}", cast_to=object)
        return [step["status"] for step in ended["steps"]], shown["baseline"]["id"]

    moved, second = run()
    again, third = run()  # the model is the alias's already

    assert (moved, again) == (["completed"] * 3, ["failed", "skipped", "skipped"])
    assert first != second == third
    checks: Any = world.client.get(f"/drift_monitors/{monitor['id']}/checks", cast_to=object)
    [only] = checks["data"]
    assert (only["status"], only["is_drift"]) == ("completed", False)


def test_deleted_monitor_leaves_neither_features_nor_running_jobs(world: World) -> None:
    monitor = create_monitor(world, TEXTS[::2])
    world.inline.drain(monitor["baseline"]["id"], timeout=60)
    world.inline.elsewhere = lambda task, _queue, _arguments: task == "run"  # no worker takes a shard
    post(world, f"/drift_monitors/{monitor['id']}/checks")
    assert world.inline.storage.list("drift") == [monitors.baseline_path(monitor["baseline"]["id"])]

    world.client.delete(f"/drift_monitors/{monitor['id']}", cast_to=object)

    world.inline.until(lambda: all_ended(world), timeout=60)
    assert world.inline.storage.list("drift") == []
    with pytest.raises(openai.NotFoundError):
        world.client.get(f"/drift_monitors/{monitor['id']}", cast_to=object)
