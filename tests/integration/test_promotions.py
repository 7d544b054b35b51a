"""Promotions to their end, by the real API, dispatcher and workers over a fake engine, and by the command."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet.tables import Model
from jobs.ledger import ledger
from jobs.queues import Queue, Task
from tests.integration.test_evals_command import working
from tests.support.eval_client import JUDGE, SAME, World, evaluating, items
from tests.support.inline_deployment import MODEL, chat_line, jsonl
from tests.support.pipeline_requests import batch_step
from tests.support.promotion_requests import ALIAS, NOT_WORSE, gate, minimum, to_model

#: The judge never answers what the items expect.
WORSE = JUDGE


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path) as world:
        with db.write() as session:
            for name in (MODEL, WORSE):
                session.add(Model(id=name, queue=Queue.GENERATE, created_at=now(), seen_at=now()))
        yield world


def post(world: World, path: str, **body: Any) -> Any:
    return world.client.post(path, body=body, cast_to=object)


def get(world: World, path: str) -> Any:
    return world.client.get(path, cast_to=object)


def upload(world: World, count: int) -> str:
    content = jsonl(items(*(f"How do I reset router {n}?" for n in range(count))))
    return world.client.files.create(file=("items.jsonl", content), purpose="evals").id


def promote(world: World, model: str, *, incumbent: str, count: int = 20, rule: dict[str, Any] = NOT_WORSE) -> Any:
    """Create a promotion of an alias, with a gate of so many items."""
    post(world, "/aliases", id=ALIAS, model=incumbent)
    gates = [gate(world.eval(SAME), upload(world, count), rule)]
    return post(world, "/promotions", target=to_model(model), gates=gates)


def end(world: World, made: Any) -> Any:
    world.inline.drain(made["id"], timeout=60)
    return get(world, f"/promotions/{made['id']}")


def model(world: World) -> str:
    return str(get(world, f"/aliases/{ALIAS}")["model"])


def test_better_model_is_promoted(world: World) -> None:
    done = end(world, promote(world, MODEL, incumbent=WORSE))

    assert (done["status"], done["error"], model(world)) == ("promoted", None, MODEL)
    [overall, same] = done["gates"][0]["report"]["criteria"]
    assert (overall["criterion"], same["criterion"]) == ("all criteria", "same")
    assert (same["items"], same["incumbent"], same["candidate"], same["outcome"]) == (20, 0.0, 1.0, "passed")
    assert 0 < same["low"] <= same["difference"] == 1.0
    assert world.told(done["id"]) == ["promotion.promoted"]


def test_worse_model_is_refused(world: World) -> None:
    done = end(world, promote(world, WORSE, incumbent=MODEL))

    assert (done["status"], model(world)) == ("refused", MODEL)
    assert done["error"] == {"code": "gate_failed", "message": "all criteria: worse; same: worse"}
    assert world.told(done["id"]) == ["promotion.refused"]


def test_ten_items_are_inconclusive(world: World) -> None:
    done = end(world, promote(world, WORSE, incumbent=MODEL, count=10))

    assert (done["status"], model(world), done["error"]["code"]) == ("inconclusive", MODEL, "gate_inconclusive")
    assert done["gates"][0]["report"]["criteria"][0]["further_items"] > 0


@pytest.mark.parametrize(("candidate", "status"), [(MODEL, "promoted"), (WORSE, "refused")])
def test_minimum_asks_the_candidate_alone(world: World, candidate: str, status: str) -> None:
    incumbent = WORSE if candidate == MODEL else MODEL
    done = end(world, promote(world, candidate, incumbent=incumbent, rule=minimum(0.9)))

    assert (done["status"], model(world)) == (status, MODEL)
    assert done["gates"][0]["incumbent_run_id"] is None


def test_forced_promotion_needs_no_run(world: World) -> None:
    post(world, "/aliases", id=ALIAS, model=MODEL)

    done = end(world, post(world, "/promotions", target=to_model(WORSE), force=True, reason="the incumbent leaks"))

    assert (done["status"], done["gates"], model(world)) == ("promoted", [], WORSE)


def test_worse_version_of_a_prompt_is_refused(world: World) -> None:
    def say(text: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": text}]}

    prompt_id = post(world, "/prompts", **say("{{question}}"))["id"]
    post(world, f"/prompts/{prompt_id}/versions", **say("{{question}} Be brief."))
    asked = {"type": "prompt", "prompt": {"id": prompt_id, "variables": {"question": "{{ item.question }}"}}}
    gates = [gate(world.eval(SAME), upload(world, 20), model=MODEL, input_messages=asked)]

    target = {"type": "prompt", "id": prompt_id, "version": 2}
    done = end(world, post(world, "/promotions", target=target, gates=gates))

    assert done["status"] == "refused"
    assert get(world, f"/prompts/{prompt_id}")["default_version"] == "1"


def test_pipeline_fails_with_its_refused_promotion(world: World) -> None:
    post(world, "/aliases", id=ALIAS, model=MODEL)
    request = {"target": to_model(WORSE), "gates": [gate(world.eval(SAME), upload(world, 20))]}
    questions = world.client.files.create(file=("q.jsonl", jsonl([chat_line("q", "Hi")])), purpose="batch").id
    steps = [
        {"name": "promote", "kind": "promotion", "request": request},
        batch_step("answer", questions, after=["promote"]),
    ]

    made = post(world, "/pipelines", steps=steps)
    world.inline.drain(made["id"], timeout=60)

    promote_, answer = get(world, f"/pipelines/{made['id']}")["steps"]
    assert (promote_["status"], promote_["error"]["code"], answer["status"]) == ("failed", "gate_failed", "skipped")
    assert get(world, f"/promotions/{promote_['job_id']}")["status"] == "refused"
    assert model(world) == MODEL


def test_deleted_eval_makes_the_promotion_inconclusive(world: World) -> None:
    world.inline.elsewhere = lambda task, _queue, _arguments: task == Task.RUN  # no worker takes a shard
    made = promote(world, MODEL, incumbent=WORSE)
    world.client.evals.delete(made["gates"][0]["eval_id"])

    done = end(world, made)

    assert (done["status"], done["error"]["code"], model(world)) == ("inconclusive", "dependency_failed", WORSE)


def test_eval_that_is_deleted_after_its_runs_makes_the_promotion_inconclusive(world: World) -> None:
    made = promote(world, MODEL, incumbent=WORSE)
    world.inline.elsewhere = lambda _task, _queue, arguments: made["id"] in arguments
    names = ("candidate_run_id", "incumbent_run_id")
    world.inline.drain(*(made["gates"][0][name] for name in names), timeout=60)
    world.client.evals.delete(made["gates"][0]["eval_id"])
    world.inline.elsewhere = lambda *_: False

    done = end(world, made)

    assert (done["status"], done["error"]["code"], model(world)) == ("inconclusive", "gate_inconclusive", WORSE)
    assert "was deleted" in done["error"]["message"]


@pytest.mark.parametrize("step", [Task.PLAN, Task.FINISH])
def test_worker_that_dies_with_its_claim_is_replaced(world: World, step: Task) -> None:
    made = promote(world, MODEL, incumbent=WORSE)

    def die(task: str, _queue: str, arguments: Sequence[Any]) -> bool:
        """Take the first message for the step, claim the promotion, and do nothing more."""
        if task != step or made["id"] not in arguments:
            return False
        with world.inline.db.write() as session:
            assert ledger.claim(session, made["id"], step, "dead") is not None
        world.inline.elsewhere = lambda *_: False
        return True

    world.inline.elsewhere = die
    done = end(world, made)

    assert (done["status"], model(world)) == ("promoted", MODEL)
    assert world.inline.job(made["id"]).lost_leases == 1
    assert world.told(made["id"]) == ["promotion.promoted"]


# ── the command ──


def call(world: World, *words: str) -> Result:
    where = ["--url", str(world.client.base_url).removesuffix("/v1/"), "--api-key", world.client.api_key]
    with working(world):
        return CliRunner().invoke(app, ["promote", *words, *where])


def gate_options(world: World, folder: Path, count: int) -> tuple[str, ...]:
    file = folder / f"{count}.jsonl"
    file.write_bytes(jsonl(items(*(f"q{n}" for n in range(count)))))
    return "--eval", world.eval(SAME), "--data", str(file), "--wait"


def test_exit_code_of_the_command_is_that_of_the_end(world: World, tmp_path: Path) -> None:
    post(world, "/aliases", id=ALIAS, model=MODEL)
    enough, few = (gate_options(world, tmp_path, count) for count in (20, 10))
    ask = ("--prompt", "{{ item.question }}")

    unsure = call(world, "alias", ALIAS, WORSE, *few, *ask)
    refused = call(world, "alias", ALIAS, WORSE, *enough, *ask)
    forced = call(world, "alias", ALIAS, WORSE, "--force", "--reason", "trial", "--wait")
    promoted = call(world, "alias", ALIAS, MODEL, *enough, *ask, "--minimum", "0.9", "--not-worse", "2", "--json")

    assert [each.exit_code for each in (unsure, refused, forced, promoted)] == [3, 1, 0, 0], promoted.output
    assert "inconclusive: all criteria: inconclusive, about 10 more items" in unsure.stderr
    assert "refused: all criteria: worse" in str(refused.exception)
    assert f"promoted, forced, alias {ALIAS}, from {MODEL} to {WORSE}" in forced.stdout
    done = json.loads(promoted.stdout)
    assert [each["report"]["outcome"] for each in done["gates"]] == ["passed", "passed"]
    assert model(world) == MODEL


def test_command_names_a_gate_or_a_reason(world: World) -> None:
    nothing = call(world, "alias", ALIAS, MODEL)
    unexplained = call(world, "alias", ALIAS, MODEL, "--force")

    assert "name the gate with --eval and --data" in str(nothing.exception)
    assert "A forced promotion says why." in str(unexplained.exception)
    assert get(world, "/promotions")["data"] == []


def test_command_gives_each_variable_of_a_prompt_the_field_of_its_name(world: World, tmp_path: Path) -> None:
    content = {"messages": [{"role": "user", "content": "{{question}}"}], "model": WORSE}
    prompt_id = post(world, "/prompts", **content)["id"]
    post(world, f"/prompts/{prompt_id}/versions", **content | {"model": MODEL})

    done = call(world, "prompt", prompt_id, "2", *gate_options(world, tmp_path, 20))
    listed = call(world, "list")

    assert done.exit_code == 0, done.output
    assert get(world, f"/prompts/{prompt_id}")["default_version"] == "2"
    assert f"prompt {prompt_id}" in listed.stdout
