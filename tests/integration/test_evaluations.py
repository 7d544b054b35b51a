"""Runs of evals: the official SDK, the real API, the real dispatcher and workers over a fake engine."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion
from sqlalchemy import select

from jobs.clock import now
from jobs.db.engine import Database
from jobs.evals.tables import EvalRun
from jobs.ids import new_id
from jobs.inference.stored import StoredAnswer, encode
from jobs.inference.tables import StoredResponse
from jobs.ledger import ledger, shards
from jobs.ledger.states import TERMINAL, JobState
from jobs.ledger.tables import Segment
from jobs.queues import Task
from jobs.requests.endpoints import RESPONSES
from jobs.security import keys
from tests.support.eval_client import JUDGE, SAME, SCORE, World, echo, evaluating, items
from tests.support.inline_deployment import MODEL
from tests.support.web import keep_completion_in
from workers.engines.port import refusal


@pytest.fixture
def make_world(db: Database, tmp_path: Path) -> Iterator[Callable[..., World]]:
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(evaluating(db, tmp_path, **settings))


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


def test_model_is_sampled_graded_and_counted(world: World) -> None:
    run = world.run(world.eval(SAME), items("a", "b") + items("c", right=False))
    assert (run.status, run.result_counts.total, run.per_model_usage) == ("queued", 0, None)

    done = world.ended(run)

    counts = done.result_counts
    assert (done.status, counts.total, counts.passed, counts.failed, counts.errored) == ("completed", 3, 2, 1, 0)
    (result,) = done.per_testing_criteria_results
    assert (result.testing_criteria, result.passed, result.failed) == ("same", 2, 1)
    (usage,) = done.per_model_usage
    assert (usage.run_model_name, usage.invocation_count) == (MODEL, 3)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    assert world.told(run.id) == ["eval.run.succeeded"]
    first, second, third = world.output(run)
    assert [item.status for item in (first, second, third)] == ["pass", "pass", "fail"]
    assert (first.datasource_item_id, first.datasource_item["question"]) == (0, "a")
    assert (first.results[0].name, first.results[0].score, first.results[0].passed) == ("same", 1.0, True)
    assert [(part.role, part.content) for part in first.sample.input] == [("user", "a")]
    assert [part.content for part in first.sample.output] == [echo("a")]
    assert (first.sample.model, first.sample.finish_reason) == (MODEL, "stop")


@pytest.mark.verify
def test_jobs_of_a_run_are_no_batches(world: World) -> None:
    run = world.run(world.eval(SAME, SCORE), items("a"))

    done = world.ended(run)

    assert done.status == "completed"
    assert list(world.client.batches.list()) == []
    assert list(world.client.files.list()) == []
    listed = world.client.get("/jobs", cast_to=dict[str, Any])["data"]
    assert sorted(job["kind"] for job in listed) == ["evaluation", "sampling", "sampling"]


def test_judges_grade_answers_of_model(world: World) -> None:
    world.verdicts[:] = [8.0, 2.0]
    run = world.run(world.eval(SAME, SCORE), items("a", "b"))

    done = world.ended(run)

    assert (done.result_counts.passed, done.result_counts.failed) == (1, 1)
    assert {usage.run_model_name: usage.invocation_count for usage in done.per_model_usage} == {MODEL: 2, JUDGE: 2}
    judge = next(usage for usage in done.per_model_usage if usage.run_model_name == JUDGE)
    assert (judge.prompt_tokens, judge.completion_tokens) == (14, 6)
    assert sorted(item.results[1].score for item in world.output(run)) == [2.0, 8.0]
    prompts = [json.dumps(request.body["messages"]) for request in world.asked if request.body["model"] == JUDGE]
    assert all(any(echo(text) in prompt for prompt in prompts) for text in "ab")


def test_judge_result_contains_its_input_and_output(world: World) -> None:
    both = {"type": "multi", "name": "both", "graders": {"a": SCORE}, "calculate_output": "a"}
    run = world.run(world.eval(SCORE, both), items("a"))

    world.ended(run)

    (item,) = world.output(run)
    sample = item.results[0].sample
    assert item.results[1].sub_results["a"]["sample"] == sample
    assert f"How good is '{echo('a')}'?" in sample["input"][-1]["content"]
    assert json.loads(sample["output"][0]["content"]) == {"steps": [], "result": 8.0}
    assert (sample["result"], sample["steps"], sample["finish_reason"], sample["model"]) == (8.0, [], "stop", JUDGE)
    assert sample["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "cached_tokens": 0}
    assert (sample["temperature"], sample["max_completion_tokens"], sample["error"]) == (0, 1024, None)


def test_whole_completions_that_items_bring_are_graded(world: World) -> None:
    message = {"role": "assistant", "content": "yes"}
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    by_hand = {"model": "theirs", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    dumped = ChatCompletion.model_validate({
        **by_hand, "id": "c", "object": "chat.completion", "created": 1, "usage": usage
    }).model_dump()  # fmt: skip
    content = [{"item": {"question": "q", "answer": "yes"}, "sample": sample} for sample in (by_hand, dumped)]
    run = world.run(world.eval(SAME), content, kind="jsonl")

    done = world.ended(run)

    assert (done.result_counts.passed, done.result_counts.errored) == (2, 0)
    _, item = world.output(run)
    assert (item.sample.output[0].content, item.sample.finish_reason, item.sample.model) == ("yes", "stop", "theirs")
    assert (item.sample.usage.total_tokens, item.sample.usage.cached_tokens) == (6, 0)


def test_nonsense_of_a_judge_is_an_error_and_no_failure(world: World) -> None:
    world.verdicts[:] = [refusal(500, "It broke.", code="server_error"), 9.0]
    run = world.run(world.eval(SAME, SCORE), items("a", "b"))

    done = world.ended(run)

    counts = done.result_counts
    assert (done.status, counts.total, counts.passed, counts.failed, counts.errored) == ("completed", 2, 1, 0, 1)
    (errored,) = world.output(run, extra_query={"status": "error"})
    assert (errored.status, errored.results[1].score) == ("error", None)
    assert errored.results[1].error["code"] == "model_grader_server_error"
    assert world.output(run, status="fail") == []
    assert len(world.output(run, status="pass")) == 1


@pytest.mark.verify
def test_item_that_no_model_answers_is_an_error(world: World) -> None:
    run = world.run(world.eval(SAME, SCORE), items("!500 a", "b"))

    done = world.ended(run)

    assert (done.result_counts.errored, done.result_counts.passed) == (1, 1)
    first, _ = world.output(run)
    assert (first.status, first.sample.output) == ("error", [])
    assert first.sample.error.code
    assert [result.passed for result in first.results] == [False, False]


@pytest.mark.verify
def test_items_bring_their_samples(world: World) -> None:
    content = [
        {"item": {"question": "q", "answer": "yes"}, "sample": {"output_text": "yes", "model": "theirs"}},
        {"item": {"question": "q", "answer": "yes"}, "sample": {"output_text": "no"}},
        {"item": {"question": "q", "answer": "yes"}},
    ]
    run = world.run(world.eval(SAME), content, kind="jsonl")

    done = world.ended(run)

    counts = done.result_counts
    assert (counts.passed, counts.failed, counts.errored, done.per_model_usage) == (1, 1, 1, [])
    first = world.output(run)[0]
    assert (first.sample.model, first.sample.output[0].content, first.sample.input) == ("theirs", "yes", [])


@pytest.mark.verify
def test_responses_are_sampled(world: World) -> None:
    run = world.run(world.eval(SAME), items("a"), kind="responses", sampling_params={"max_completion_tokens": 9})

    done = world.ended(run)

    assert done.status == "completed"
    (item,) = world.output(run)
    assert item.sample.output[0].content
    (request,) = [request for request in world.asked if request.url == "/v1/responses"]
    assert (request.body["max_output_tokens"], request.body["store"]) == (9, False)


@pytest.mark.verify
def test_items_of_a_file(world: World) -> None:
    lines = "\n".join(map(json.dumps, items("a", "b")))
    file = world.client.files.create(file=("items.jsonl", lines.encode()), purpose="evals")
    source = {"type": "file_id", "id": file.id}

    done = world.ended(world.run(world.eval(SAME), [], source=source))

    assert (done.status, done.result_counts.passed) == ("completed", 2)


@pytest.mark.verify
def test_several_samples_of_an_item_are_graded_each(world: World) -> None:
    run = world.run(world.eval(SAME, SCORE), items("a", "b"), sampling_params={"n": 3, "seed": 1, "temperature": 1})

    done = world.ended(run)

    assert (done.result_counts.total, done.result_counts.passed) == (6, 6)
    assert [item.datasource_item_id for item in world.output(run)] == [0, 0, 0, 1, 1, 1]
    seeds = sorted(request.body["seed"] for request in world.asked if request.body["model"] == MODEL)
    assert seeds == [1, 1, 2, 2, 3, 3]


def test_item_violating_schema_fails_run_before_sampling(world: World) -> None:
    content = [*items("a"), {"item": {"question": 5, "answer": "x"}}, {"item": {"answer": "x"}}]
    run = world.run(world.eval(SAME, SCORE), content)

    done = world.ended(run)

    assert (done.status, done.error.code) == ("failed", "invalid_item")
    assert done.error.message.startswith("Line 2: The item does not match the schema")
    (step, _) = world.steps(run.id)
    assert [error["line"] for error in step.errors or ()] == [2, 3]
    assert (world.asked, world.told(run.id)) == ([], ["eval.run.failed"])


@pytest.mark.verify
def test_template_that_names_a_missing_field_fails_the_run(world: World) -> None:
    template = {"type": "template", "template": [{"role": "user", "content": "{{ item.nothing }}"}]}
    run = world.run(world.eval(SAME), items("a"), input_messages=template)

    done = world.ended(run)

    assert (done.status, done.error.code, world.asked) == ("failed", "invalid_variable", [])


@pytest.mark.verify
def test_messages_that_items_have_themselves(world: World) -> None:
    item = {"question": "q", "answer": "x", "messages": [{"role": "user", "content": "from the item"}]}
    reference = {"type": "item_reference", "item_reference": "item.messages"}
    run = world.run(world.eval(SAME), [{"item": item}], input_messages=reference)

    assert world.ended(run).status == "completed"
    assert [request.body["messages"] for request in world.asked] == [item["messages"]]


@pytest.mark.verify
def test_pages_of_output_items_in_both_orders(world: World) -> None:
    run = world.run(world.eval(SAME), items(*(f"q{n}" for n in range(20))) + items("z", right=False))
    world.ended(run)

    ascending, descending = world.output(run, limit=3), world.output(run, limit=3, order="desc")

    assert [item.datasource_item_id for item in ascending] == list(range(21))
    assert [item.id for item in descending] == [item.id for item in reversed(ascending)]
    assert [item.datasource_item_id for item in world.output(run, status="fail", limit=1)] == [20]
    got = world.client.evals.runs.output_items.retrieve(ascending[9].id, eval_id=run.eval_id, run_id=run.id)
    assert got.id == ascending[9].id
    with pytest.raises(openai.NotFoundError):
        world.client.evals.runs.output_items.retrieve(f"{got.id[:-2]}ff", eval_id=run.eval_id, run_id=run.id)


def test_cancelled_run_cancels_its_jobs(world: World) -> None:
    run = world.run(world.eval(SAME, SCORE), items("!slow"))

    cancelled = world.client.evals.runs.cancel(run.id, eval_id=run.eval_id)
    again = world.client.post(f"/evals/{run.eval_id}/runs/{run.id}", cast_to=dict[str, Any])

    assert (cancelled.status, again["status"]) == ("canceled", "canceled")
    world.inline.until(lambda: all(job.state in TERMINAL for job in world.steps(run.id)), 60)
    assert {job.state for job in world.steps(run.id)} == {JobState.CANCELLED}
    assert world.ended(run).status == "canceled"
    assert world.told(run.id) == ["eval.run.canceled"]


def test_removed_run_leaves_nothing(world: World) -> None:
    eval_id = world.eval(SAME, SCORE)
    ended, live = world.run(eval_id, items("a")), world.run(eval_id, items("b"))
    world.inline.drain(ended.id, timeout=60)

    deleted = world.client.evals.runs.delete(ended.id, eval_id=eval_id)
    world.client.evals.delete(eval_id)
    world.inline.drain(live.id, timeout=60)
    world.inline.until(lambda: all(job.state in TERMINAL for job in world.steps(live.id)), 60)
    world.inline.wait_until_idle()

    assert (deleted.deleted, deleted.run_id) == (True, ended.id)
    assert world.inline.storage.list("jobs") == []
    with world.inline.db.read() as session:
        assert session.scalars(select(EvalRun)).all() == []
    with pytest.raises(openai.NotFoundError):
        world.client.evals.runs.retrieve(ended.id, eval_id=eval_id)


CONTAINS = {**SAME, "operation": "like", "reference": "Hello"}


def keep_response(world: World, text: str, model: str, **columns: Any) -> str:
    """Store a response as one that was answered."""
    name = new_id("resp_")
    part = {"type": "output_text", "text": text, "annotations": []}
    output = [{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}]
    response = {"id": name, "object": "response", "model": model, "status": "completed", "output": output}
    request = {"model": model, "input": [{"role": "user", "content": "q"}]}
    world.inline.storage.put(f"responses/{name}", encode(RESPONSES, StoredAnswer(request, response)))
    row = {"requested_model": model, "model": model, "created_at": now(), "expires_at": now() + 3600, **columns}
    with world.inline.db.write() as session:
        project = keys.ensure_project(session, "default").id
        session.add(StoredResponse(id=name, project_id=project, **row))
    return name


def run_over_stored(
    world: World, kind: str, *criteria: dict[str, Any], sampled: dict[str, Any] | None = None, **source: Any
) -> Any:
    """Create a run over stored answers whose metadata has the team `a`."""
    config: Any = {"type": "logs", "metadata": {"team": "a"}}
    graders: Any = list(criteria or (CONTAINS,))
    eval_id = world.client.evals.create(data_source_config=config, testing_criteria=graders).id
    data_source: Any = {"type": kind, "source": source, **(sampled or {})}
    return world.client.evals.runs.create(eval_id, data_source=data_source)


def keep_chat(world: World, text: str, project: str = "default", **facts: Any) -> str:
    return keep_completion_in(world.inline.db, world.inline.storage, project, said=text, **facts)


def inputs(rows: list[Any]) -> list[str]:
    return [row.datasource_item["input"][0]["content"] for row in rows]


def test_stored_chats_are_graded_without_resampling(world: World) -> None:
    keep_chat(world, "one", metadata_={"team": "a"}, created_at=now() - 9)
    keep_chat(world, "two", metadata_={"team": "b"})
    keep_chat(world, "three", metadata_={"team": "a", "x": "y"}, requested_model="other", created_at=now() - 5)
    keep_chat(world, "four", "strangers", metadata_={"team": "a"})
    keep_chat(world, "five", metadata_={"team": "a"}, expires_at=now() - 1)

    run = run_over_stored(world, "completions", type="stored_completions")
    done, graded = world.ended(run), world.output(run)

    assert (done.status, done.model, inputs(graded)) == ("completed", None, ["three", "one"])
    assert {item.status for item in graded} == {"pass"}
    assert (graded[0].sample.output[0].content, graded[0].sample.input[0].content) == ("Hello", "three")
    assert (graded[0].datasource_item["metadata"], graded[0].sample.model) == ({"team": "a", "x": "y"}, "m")
    assert world.asked == []


@pytest.mark.verify
@pytest.mark.parametrize(
    ("selection", "texts"),
    [
        ({"model": "other"}, ["b"]),
        ({"model": "answered"}, ["c"]),
        ({"metadata": {"x": "y"}}, ["b"]),
        ({"limit": 2}, ["c", "b"]),
        ({"created_after": 1_900_000_020}, ["c", "b"]),
        ({"created_before": 1_900_000_020}, ["b", "a"]),
        ({"created_after": None, "created_before": None, "limit": None, "model": None}, ["c", "b", "a"]),
    ],
)
def test_stored_chats_are_selected(world: World, selection: dict[str, Any], texts: list[str]) -> None:
    lasting = {"expires_at": 3_000_000_000.0}
    keep_chat(world, "a", metadata_={"team": "a"}, created_at=1_900_000_010.5, **lasting)
    keep_chat(
        world, "b", metadata_={"team": "a", "x": "y"}, requested_model="other", created_at=1_900_000_020.5, **lasting
    )
    keep_chat(world, "c", metadata_={"team": "a"}, model="answered", created_at=1_900_000_030.5, **lasting)

    run = run_over_stored(world, "completions", type="stored_completions", **selection)
    world.ended(run)

    assert inputs(world.output(run)) == texts


@pytest.mark.verify
def test_stored_responses_are_graded_by_stored_answer(world: World) -> None:
    keep_response(world, "Hello", "m", metadata_={"team": "a"})
    keep_response(world, "Bye", "m", metadata_={"team": "a"})
    keep_response(world, "Hello", "other", metadata_={"team": "a"})
    keep_response(world, "Hello", "m")
    run = run_over_stored(world, "responses", type="responses", model="m", users=None)

    done = world.ended(run)

    assert (done.result_counts.passed, done.result_counts.failed) == (1, 1)


@pytest.mark.verify
def test_model_resamples_inputs_of_stored_chats(world: World) -> None:
    keep_chat(world, "one", metadata_={"team": "a"})
    reference = {"type": "item_reference", "item_reference": "item.input"}
    check = {**SAME, "reference": echo("one")}
    sampled = {"model": MODEL, "input_messages": reference}
    run = run_over_stored(world, "completions", check, sampled=sampled, type="stored_completions")

    world.ended(run)

    (item,) = world.output(run)
    assert (item.status, item.sample.model) == ("pass", MODEL)


def test_answer_that_is_deleted_during_the_run_is_left_out(world: World) -> None:
    names = [keep_chat(world, text, metadata_={"team": "a"}) for text in ("one", "two", "three")]

    def deleting() -> float:
        world.client.chat.completions.delete(names[1])
        return 8.0

    world.verdicts[:] = [deleting, 8.0]
    done = world.ended(run_over_stored(world, "completions", CONTAINS, SCORE, type="stored_completions"))

    assert (done.status, done.result_counts.total, done.result_counts.passed) == ("completed", 2, 2)
    assert inputs(world.output(done)) == ["three", "one"]


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(Task.PLAN, marks=pytest.mark.verify),
        Task.RUN,
        pytest.param(Task.FINISH, marks=pytest.mark.verify),
    ],
)
def test_every_item_is_graded_once_however_often_workers_die(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    """A worker that dies has claimed and never goes on: its claims are revoked, and later workers do the rest."""
    world = make_world(shard_lines=2, segment_seconds=0.001)
    died: set[str] = set()

    def dies_first(name: str, owner: Any) -> None:
        work = getattr(owner, name)

        def claim(session: Any, job_id: str, *arguments: Any, **options: Any) -> Any:
            claimed = work(session, job_id, *arguments, **options)
            key = f"{job_id} {arguments[0]}"
            if claimed is None or key in died or (name == "claim" and owner is ledger and arguments[0] != task):
                return claimed
            died.add(key)
            return None

        monkeypatch.setattr(owner, name, claim)

    dies_first("claim", shards if task is Task.RUN else ledger)
    run = world.run(world.eval(SAME, SCORE), items(*(f"q{n}" for n in range(5))))

    done = world.ended(run)

    assert (done.status, done.result_counts.total, done.result_counts.passed) == ("completed", 5, 5)
    assert died
    assert [item.datasource_item_id for item in world.output(run)] == list(range(5))
    with world.inline.db.read() as session:
        segments = session.scalars(select(Segment).where(Segment.job_id == run.id)).all()
    assert sum(int.from_bytes(segment.covered, "little").bit_count() for segment in segments) == 5
