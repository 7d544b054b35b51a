"""Prompts in use: by interactive clients, in the background, in batches and in evals, over a fake engine."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from sqlalchemy import func, select

from jobs.db.engine import Database
from jobs.ledger.tables import Shard
from jobs.prompts.tables import Prompt
from tests.support.eval_client import SAME, World, echo, evaluating
from tests.support.inline_deployment import MODEL, jsonl
from tests.support.interactive_api import Shop
from workers.batches import planning
from workers.engines.port import Request

GREETING: dict[str, Any] = {
    "model": MODEL,
    "instructions": "You are {{persona}}.",
    "messages": [{"role": "user", "content": "Say hello to {{name}}."}],
    "parameters": {"temperature": 0.2, "max_output_tokens": 50},
    "variables": [{"name": "persona", "default": "a clerk"}],
}
USED: dict[str, Any] = {"variables": {"name": "Ada"}}


def make(client: OpenAI, **changes: Any) -> dict[str, Any]:
    made: Any = client.post("/prompts", body=GREETING | changes, cast_to=object)
    return dict(made)


def update(client: OpenAI, prompt_id: str, path: str = "", **body: Any) -> Any:
    return client.post(f"/prompts/{prompt_id}{path}", body=body, cast_to=object)


def shown(prompt: dict[str, Any], version: str = "1", **variables: Any) -> dict[str, Any]:
    """Return the field `prompt` of an answer, without the hash."""
    return {"id": prompt["id"], "version": version, "variables": variables or {"name": "Ada"}}


def without_hash(answer: Any) -> Any:
    prompt = (answer if isinstance(answer, dict) else answer.model_dump())["prompt"]
    return {name: value for name, value in prompt.items() if name != "hash"}


@pytest.fixture
def asked() -> list[Request]:
    return []


@pytest.fixture
def shop(make_shop: Callable[..., Shop], asked: list[Request]) -> Iterator[Shop]:
    shop = make_shop(engine={"fault": asked.append})
    with shop.open():
        yield shop


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path) as world:
        yield world


def test_response_has_fields_and_messages_of_prompt(shop: Shop, asked: list[Request]) -> None:
    prompt = make(shop.client)
    used: Any = {"id": prompt["id"], **USED}

    answer = shop.client.responses.create(prompt=used, input="And to Bob.", temperature=0.9)

    body = asked[0].body
    assert (body["model"], body["instructions"], body["max_output_tokens"]) == (MODEL, "You are a clerk.", 50)
    assert (body["temperature"], "prompt" in body) == (0.9, False)
    assert body["input"] == [
        {"role": "user", "content": "Say hello to Ada."},
        {"role": "user", "content": "And to Bob."},
    ]
    assert answer.model_dump()["prompt"] == {**shown(prompt), "hash": prompt["version"]["hash"]}
    assert (answer.model, answer.instructions) == (MODEL, "You are a clerk.")
    assert without_hash(shop.client.responses.retrieve(answer.id)) == shown(prompt)


def test_next_turn_does_not_repeat_messages_of_prompt(shop: Shop, asked: list[Request]) -> None:
    prompt = make(shop.client)
    used: Any = {"id": prompt["id"], **USED}
    conversation = shop.client.conversations.create().id

    first = shop.client.responses.create(prompt=used, input="a")
    shop.client.responses.create(prompt=used, input="b", previous_response_id=first.id)
    shop.client.responses.create(model=MODEL, input="c", previous_response_id=first.id)
    for _ in range(2):
        shop.client.responses.create(prompt=used, input="d", conversation=conversation)

    greetings = [
        [item.get("content") for item in request.body["input"]].count("Say hello to Ada.") for request in asked
    ]
    assert greetings == [1, 1, 0, 1, 1]
    assert asked[1].body["input"][0]["content"] == "Say hello to Ada."
    listed = shop.client.responses.input_items.list(first.id).data
    assert [item.content[0].text for item in listed] == ["a"]  # type: ignore[union-attr]


def test_streams_and_chats_name_their_prompt(shop: Shop, asked: list[Request]) -> None:
    prompt = make(shop.client)
    used: Any = {"id": prompt["id"], **USED}

    events = list(shop.client.responses.create(prompt=used, stream=True))
    assert without_hash(events[-1].response) == shown(prompt)  # type: ignore[union-attr]
    for store in (False, True):
        body: dict[str, Any] = {"prompt": used, "store": store, "max_tokens": 7}
        whole = shop.post("chat/completions", body).json()
        chunks = shop.post("chat/completions", body | {"stream": True}).text.split("\n\n")
        assert without_hash(whole) == shown(prompt)
        assert without_hash(json.loads(chunks[0].removeprefix("data: "))) == shown(prompt)
    assert without_hash(shop.client.chat.completions.retrieve(whole["id"])) == shown(prompt)
    chat = asked[-1].body
    assert (chat["model"], chat["temperature"], chat["max_tokens"]) == (MODEL, 0.2, 7)
    assert "max_completion_tokens" not in chat
    assert [message["content"] for message in chat["messages"]] == ["You are a clerk.", "Say hello to Ada."]


def test_versions_are_named_by_number_label_and_default(shop: Shop, asked: list[Request]) -> None:
    prompt = make(shop.client)
    update(shop.client, prompt["id"], "/versions", **GREETING | {"instructions": "Second."})
    update(shop.client, prompt["id"], labels={"next": "2"})
    update(shop.client, prompt["id"], "/archive")

    for version in (None, "2", "next"):
        used: Any = {"id": prompt["id"], "version": version, **USED}
        answer = shop.client.responses.create(prompt=used)
        assert without_hash(answer) == shown(prompt, "1" if version is None else "2")
    assert [request.body["instructions"] for request in asked] == ["You are a clerk.", "Second.", "Second."]


@pytest.mark.parametrize("path", ["responses", "chat/completions"])
@pytest.mark.parametrize(
    ("used", "status", "param", "code", "text"),
    [
        ({"id": "pmpt_none"}, 404, "prompt.id", "prompt_not_found", "pmpt_none"),
        ({"version": "9", **USED}, 404, "prompt.version", "prompt_version_not_found", "9"),
        ({}, 400, "prompt.variables", "missing_prompt_variables", "'name'"),
        ({"variables": {"name": "a", "nam": "b"}}, 400, "prompt.variables", "unknown_prompt_variables", "'nam'"),
        ({"variables": {"name": 5}}, 400, "prompt.variables", "invalid_type", "'name'"),
        ({"version": 2, **USED}, 400, "prompt.version", "invalid_type", "string"),
    ],
)
def test_wrong_reference_is_refused(
    shop: Shop, path: str, used: dict[str, Any], status: int, param: str, code: str, text: str
) -> None:
    answer = shop.post(path, {"prompt": {"id": make(shop.client)["id"], **used}})

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code), answer.text
    assert text in error["message"]
    assert shop.asked == []


def test_request_without_model_of_its_own_or_its_prompt_is_refused(shop: Shop) -> None:
    prompt = make(shop.client, model=None)
    for path in ("responses", "chat/completions"):
        answer = shop.post(path, {"prompt": {"id": prompt["id"], **USED}})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
        assert shop.post(path, {}).json()["error"]["code"] == "missing_required_parameter"


def test_repeated_key_answers_once_although_label_has_moved(shop: Shop, asked: list[Request]) -> None:
    prompt = make(shop.client)
    update(shop.client, prompt["id"], "/versions", **GREETING | {"instructions": "Second."})

    def ask() -> httpx2.Response:
        return shop.post("responses", {"prompt": {"id": prompt["id"], **USED}}, **{"Idempotency-Key": "k"})

    first = ask()
    update(shop.client, prompt["id"], default_version="2")
    assert (ask().json(), len(asked)) == (first.json(), 1)


def test_prompts_of_other_projects_are_not_found(shop: Shop) -> None:
    used: Any = {"id": make(shop.client)["id"], **USED}
    with shop.stranger() as stranger, pytest.raises(openai.NotFoundError, match="not found"):
        stranger.responses.create(prompt=used)


def test_background_response_is_answered_by_prompt(world: World) -> None:
    prompt = make(world.client)
    used: Any = {"id": prompt["id"], **USED}

    queued = world.client.responses.create(prompt=used, background=True)
    world.inline.drain(queued.id)

    done = world.client.responses.retrieve(queued.id)
    assert (done.status, without_hash(queued), without_hash(done)) == ("completed", shown(prompt), shown(prompt))
    assert world.asked[0].body["input"] == [{"role": "user", "content": "Say hello to Ada."}]
    following = world.client.responses.create(model=MODEL, input="b", previous_response_id=done.id, background=True)
    world.inline.drain(following.id)
    assert "Say hello to Ada." not in [item["content"] for item in world.asked[1].body["input"]]


def batch(world: World, endpoint: str, *bodies: dict[str, Any]) -> Any:
    lines = [{"custom_id": str(n), "method": "POST", "url": endpoint, "body": body} for n, body in enumerate(bodies)]
    file = world.client.files.create(file=("lines.jsonl", jsonl(lines)), purpose="batch")
    return world.client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window="24h",  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("endpoint", ["/v1/responses", "/v1/chat/completions"])
def test_batch_runs_versions_that_planning_has_found(
    world: World, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = make(world.client)
    update(world.client, prompt["id"], "/versions", **GREETING | {"instructions": "Second."})
    update(world.client, prompt["id"], labels={"next": "2"})
    used = {"id": prompt["id"], **USED}
    begin_running = planning.ledger.begin_running

    def begin_and_move(session: Any, claim: Any, **values: Any) -> Any:
        """Let the job run; then labels and default move, before any line has run."""
        job = begin_running(session, claim, **values)
        row = session.get(Prompt, (job.project_id, prompt["id"]))
        row.default_version, row.labels = 2, {"next": 1}
        return job

    monkeypatch.setattr(planning.ledger, "begin_running", begin_and_move)
    lines = ({"prompt": used}, {"prompt": {**used, "version": "next"}}, {"prompt": {"id": prompt["id"]}})
    job_id = batch(world, endpoint, *lines).id
    (job,) = world.inline.drain(job_id)

    outputs, errors = world.inline.results(job)
    answers = {line["custom_id"]: line["response"]["body"] for line in outputs}
    assert {name: without_hash(answer)["version"] for name, answer in answers.items()} == {"0": "1", "1": "2"}
    assert {str(request.body).count("Second.") for request in world.asked} == {0, 1}
    (error,) = [line["response"] for line in errors]
    assert (error["status_code"], error["body"]["error"]["param"]) == (400, "prompt.variables")
    with world.inline.db.read() as session:  # the limit of each answer, and the prompt at four bytes a token
        assert (session.scalar(select(func.sum(Shard.max_output_tokens))) or 0) > 3 * (50 + 30)
    pins = world.client.batches.retrieve(job_id).model_dump()["prompts"]
    assert pins == [
        {"id": prompt["id"], "requested_version": None, "version": "1"},
        {"id": prompt["id"], "requested_version": "next", "version": "2"},
    ]


def test_batch_with_unknown_prompt_or_without_model_fails_at_planning(world: World) -> None:
    nameless = make(world.client, model=None)["id"]
    bodies: list[dict[str, Any]] = [
        {"prompt": {"id": "pmpt_none"}},
        {"prompt": {"id": nameless}},
        {"prompt": {"id": 5}},
        {"model": MODEL},
    ]
    job = batch(world, "/v1/responses", *bodies)
    world.inline.drain(job.id)

    errors = world.client.batches.retrieve(job.id).errors.data  # type: ignore[union-attr]
    assert [(error.line, error.code, error.param) for error in errors or ()] == [
        (1, "prompt_not_found", "body.prompt.id"),
        (2, "invalid_request", "body.model"),
        (3, "invalid_value", "body.prompt.id"),
        (4, "invalid_request", "body.input"),
    ]
    assert world.asked == []


def test_dry_run_of_batch_checks_variables(world: World, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", db.url)
    prompt_id = make(world.client)["id"]
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/responses", "body": {"prompt": {"id": prompt_id, **used}}}
        for name, used in (("a", USED), ("b", {}))
    ]
    file = world.client.files.create(file=("lines.jsonl", jsonl(lines)), purpose="batch")

    body = {"input_file_id": file.id, "endpoint": "/v1/responses"}
    report: Any = world.client.post("/batches/validate", body=body, cast_to=object)
    assert (report["model"], [error["param"] for error in report["errors"]["data"]]) == (
        MODEL, ["body.prompt.variables"],
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["completions", "responses"])
def test_eval_samples_with_prompt_and_variables_of_items(world: World, kind: str) -> None:
    prompt = make(world.client, messages=[{"role": "user", "content": "{{name}}"}])
    begin = "You are a clerk.\n" if kind == "completions" else ""  # the fake engine reads no instructions
    content = [{"item": {"question": text, "answer": echo(f"{begin}{text}")}} for text in ("a", "b")]
    messages = {"type": "prompt", "prompt": {"id": prompt["id"], "variables": {"name": "{{ item.question }}"}}}

    run = world.run(world.eval(SAME), content, kind, model=None, input_messages=messages)
    update(world.client, prompt["id"], "/versions", instructions="Second.")
    update(world.client, prompt["id"], default_version="2")
    done = world.ended(run)

    assert (done.status, done.result_counts.passed) == ("completed", 2), done
    shown: Any = world.client.get(f"/evals/{run.eval_id}/runs/{run.id}", cast_to=object)
    assert shown["data_source"]["input_messages"]["prompt"]["version"] == "1"
    assert [request.body["temperature"] for request in world.asked] == [0.2, 0.2]
    assert "You are a clerk." in str(world.asked[0].body)
    assert world.output(run)[0].sample.input[0].content == "You are a clerk."


def test_run_with_wrong_prompt_is_refused(world: World) -> None:
    prompt = make(world.client)["id"]
    eval_id = world.eval(SAME)
    for used, param in (
        ({"id": "pmpt_none"}, "prompt.id"),
        ({"id": prompt}, "prompt.variables"),
        ({"id": prompt, "variables": {"name": "{{ question }}"}}, "prompt"),
    ):
        with pytest.raises(openai.APIStatusError) as refused:
            world.run(
                eval_id, [{"item": {"question": "a", "answer": "b"}}], model=None,
                input_messages={"type": "prompt", "prompt": used},
            )  # fmt: skip
        assert str(refused.value.param).endswith(param), refused.value
