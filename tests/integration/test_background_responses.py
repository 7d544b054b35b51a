"""Responses in the background: the official SDK, the real API, the real dispatcher and workers over a fake engine."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response
from sqlalchemy import select, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import StorageUnavailable
from jobs.inference import responses
from jobs.inference.tables import StoredResponse
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.platform.storage import DiskStorage
from jobs.webhooks.tables import Event
from tests.support.fake_engine import FakeEngine, reply
from tests.support.inline_deployment import MODEL, InlineDeployment, running
from tests.support.orphan_files import look_twice
from tests.support.web import make_key, running_app, serve
from workers.dispatcher.retention import Retention
from workers.engines.port import Answer, Request, refusal
from workers.inference import background_responses
from workers.kinds import HANDLERS


@dataclass
class World:
    """A client, and those who work for it when they are told to."""

    inline: InlineDeployment
    client: OpenAI
    faults: list[Answer] = field(default_factory=list)

    def create(self, said: Any = "Hello", **fields: Any) -> Response:
        made = self.client.responses.create(model=MODEL, input=said, background=True, **fields)
        assert isinstance(made, Response)
        return made

    def ended(self, made: Response) -> Response:
        self.inline.drain(made.id)
        return self.client.responses.retrieve(made.id)

    def told(self, response_id: str) -> list[str]:
        with self.inline.db.read() as session:
            told = session.scalars(select(Event.type).where(Event.subject_id == response_id).order_by(Event.seq)).all()
        return [kind for kind in told if not kind.startswith("job.")]

    def objects(self) -> list[str]:
        return self.inline.storage.list("responses")


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    faults: list[Answer] = []
    engine = FakeEngine((MODEL,), fault=lambda _: faults.pop() if faults else None)
    with (
        running(db, tmp_path, engine) as inline,
        running_app(tmp_path, db.url) as app,
        serve(app) as url,
        OpenAI(base_url=f"{url}/v1", api_key=make_key(app), max_retries=0) as client,
    ):
        yield World(inline, client, faults)


def test_a_response_is_queued_at_once_and_answered_later(world: World) -> None:
    asked: dict[str, Any] = {"reasoning": {"effort": "low"}, "safety_identifier": "s1"}
    made = world.create(metadata={"team": "blue"}, instructions="Be brief.", max_output_tokens=9, **asked)
    assert (made.status, made.background, made.output, made.usage) == ("queued", True, [], None)
    assert (made.instructions, made.max_output_tokens) == ("Be brief.", 9)
    assert (made.temperature, made.top_p, made.top_logprobs, made.service_tier) == (1.0, 1.0, 0, "auto")
    assert made.reasoning
    assert made.reasoning.effort == "low"

    done = world.ended(made)

    assert (done.id, done.status, done.background, done.metadata) == (made.id, "completed", True, {"team": "blue"})
    assert done.output_text.startswith("echo ")
    assert (made.safety_identifier, done.safety_identifier) == ("s1", "s1")
    assert done.usage
    job = world.inline.job(made.id)
    assert (job.kind, job.state, job.completed, job.failed) == ("response", JobState.SUCCEEDED, 1, 0)
    assert job.input_tokens + job.output_tokens == done.usage.total_tokens
    assert world.told(made.id) == ["response.completed"]


def test_response_row_has_bytes_of_request_and_answer(world: World) -> None:
    def size() -> int | None:
        with world.inline.db.read() as session:
            return session.scalars(select(StoredResponse.bytes)).one()

    made = world.create()
    assert size() == world.inline.storage.size(f"responses/{made.id}")
    world.ended(made)
    assert size() == world.inline.storage.size(f"responses/{made.id}")


def test_it_is_no_batch_and_has_no_files(world: World) -> None:
    world.ended(world.create())

    assert list(world.client.batches.list()) == []
    assert list(world.client.files.list()) == []


def test_it_continues_and_is_continued(world: World) -> None:
    first = world.ended(world.create("one"))
    second = world.ended(world.create("two", previous_response_id=first.id))

    items = list(world.client.responses.input_items.list(second.id, order="asc"))

    assert [item.content[0].text for item in items] == ["one", first.output_text, "two"]  # type: ignore[union-attr,index]
    assert second.previous_response_id == first.id


def test_unanswered_response_cannot_be_continued(world: World) -> None:
    made = world.create()

    with pytest.raises(openai.BadRequestError) as refused:
        world.create("and then?", previous_response_id=made.id)

    assert (refused.value.param, refused.value.code) == ("previous_response_id", "invalid_state")


def test_a_refusal_fails_it_with_the_engines_words(world: World) -> None:
    world.faults.append(refusal(400, "The prompt is too long.", code="context_length_exceeded", param="input"))

    failed = world.ended(world.create())

    assert failed.status == "failed"
    assert failed.error
    assert (failed.error.code, failed.error.message) == ("server_error", "The prompt is too long.")
    job = world.inline.job(failed.id)
    assert (job.state, job.completed, job.failed) == (JobState.FAILED, 0, 1)
    assert job.errors
    assert job.errors[0]["code"] == "context_length_exceeded"
    assert world.told(failed.id) == ["response.failed"]


def test_text_quoted_by_refusal_is_only_in_response(world: World) -> None:
    error = {"message": "input: the secret", "type": "BadRequestError", "param": 3, "code": 400}
    world.faults.append(Answer(400, msgspec.json.encode({"error": error})))

    failed = world.ended(world.create("the secret"))

    assert failed.error
    assert failed.error.message == "input: the secret"
    job = world.client.get(f"/jobs/{failed.id}", cast_to=object)
    assert "secret" not in str(job)
    assert "engine_error" in str(job)


@pytest.mark.parametrize("body", [b'{"error": null}', b"[]"])
def test_an_answer_that_is_no_response_is_a_failure(world: World, body: bytes) -> None:
    world.faults.append(Answer(200, body))

    failed = world.ended(world.create())

    assert (failed.status, world.told(failed.id)) == ("failed", ["response.failed"])


def test_deleted_answered_response_leaves_nothing(world: World) -> None:
    done = world.ended(world.create())
    assert world.inline.storage.list(f"jobs/{done.id}")

    world.client.responses.delete(done.id)

    assert world.inline.storage.list(f"jobs/{done.id}") == world.objects() == []


def test_truncated_response_is_incomplete(world: World) -> None:
    body = msgspec.json.decode(reply("/v1/responses", {"model": MODEL}, "Hello").body)
    cut = {**body, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    world.faults.append(Answer(200, msgspec.json.encode(cut)))

    done = world.ended(world.create())

    assert done.status == "incomplete"
    assert done.incomplete_details
    assert done.incomplete_details.reason == "max_output_tokens"
    assert world.told(done.id) == ["response.incomplete"]


def test_cancelled_response_stays_cancelled(world: World) -> None:
    made = world.create()

    assert world.client.responses.cancel(made.id).status == "cancelled"
    assert world.client.responses.cancel(made.id).status == "cancelled"

    assert world.ended(made).status == "cancelled"
    assert world.told(made.id) == ["response.cancelled"]


def _finished_by(monkeypatch: pytest.MonkeyPatch, finish: Callable[..., Any]) -> None:
    handler = replace(HANDLERS[responses.KIND], finish=finish)
    monkeypatch.setitem(HANDLERS, responses.KIND, handler)


def test_response_cancelled_during_its_answer_ends_as_cancelled_without_the_answers_file(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup's files may be of a later moment than its database."""
    put, respond, segments = DiskStorage.put, background_responses.respond, list[str]()

    def cancelled_meanwhile(storage: DiskStorage, path: str, data: bytes) -> None:
        put(storage, path, data)
        if path.startswith("jobs/"):
            world.client.responses.cancel(made.id)

    def gone_since(context: Any, claim: Any, hold: Any) -> None:
        segments.extend(context.storage.list(f"jobs/{made.id}"))
        context.storage.delete(f"jobs/{made.id}")
        respond(context, claim, hold)

    monkeypatch.setattr(DiskStorage, "put", cancelled_meanwhile)
    _finished_by(monkeypatch, gone_since)
    made = world.create()

    done = world.ended(made)

    assert (len(segments), done.status, world.inline.job(made.id).completed) == (1, "cancelled", 1)
    assert world.told(made.id) == ["response.cancelled"]


def test_cancelling_completed_response_changes_nothing(world: World) -> None:
    done = world.ended(world.create())

    assert world.client.responses.cancel(done.id) == done


def test_response_that_is_not_answered_in_time_fails(world: World) -> None:
    made = world.create()
    with world.inline.db.write() as session:
        session.execute(update(Job).where(Job.id == made.id).values(deadline=now() - 1))

    failed = world.ended(made)

    assert (failed.status, world.told(made.id)) == ("failed", ["response.failed"])
    assert failed.error
    assert "within its time" in failed.error.message


def test_deleted_response_is_not_answered_and_leaves_nothing(world: World) -> None:
    made = world.create()

    world.client.responses.delete(made.id)

    world.inline.drain(made.id)
    assert world.inline.job(made.id).state == JobState.CANCELLED
    with pytest.raises(openai.NotFoundError):
        world.client.responses.retrieve(made.id)
    assert world.objects() == []


@pytest.mark.parametrize("step", ["respond", "_object", "_write", "_close"])
def test_response_deleted_during_its_answer_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    does = getattr(background_responses, step)

    def deleted_before(*arguments: Any) -> Any:
        world.client.responses.delete(made.id)
        return does(*arguments)

    if step == "respond":
        _finished_by(monkeypatch, deleted_before)
    else:
        monkeypatch.setattr(background_responses, step, deleted_before)
    made = world.create()

    world.inline.drain(made.id)
    world.inline.wait_until_idle()

    job = world.inline.job(made.id)
    assert (job.state, job.failed_attempts) == (JobState.SUCCEEDED, 0)
    assert world.objects() == world.inline.storage.list(f"jobs/{made.id}") == []


def test_response_is_deleted_while_storage_deletes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = background_responses._object

    def away(_: str) -> None:
        raise StorageUnavailable

    def deleted_before(context: Any, response_id: str) -> Any:
        world.client.responses.delete(response_id)
        monkeypatch.setattr(world.inline.storage, "delete", away)
        return found(context, response_id)

    monkeypatch.setattr(background_responses, "_object", deleted_before)
    made = world.create()

    world.inline.drain(made.id)
    world.inline.wait_until_idle()

    assert world.inline.job(made.id).state == JobState.SUCCEEDED


def test_a_worker_that_dies_with_the_answer_written_leaves_it_to_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    close, died = background_responses._close, []

    def dies_once(*arguments: Any) -> None:
        if not died:
            died.append(True)
            assert world.client.responses.retrieve(made.id).status == "in_progress"  # though the object is there
            raise RuntimeError("it dies")
        close(*arguments)

    monkeypatch.setattr(background_responses, "_close", dies_once)
    made = world.create()

    done = world.ended(made)

    assert (died, done.status, world.told(made.id)) == ([True], "completed", ["response.completed"])


def test_idempotency_key_makes_single_response(world: World) -> None:
    headers = {"Authorization": f"Bearer {world.client.api_key}", "Idempotency-Key": "k"}
    body = {"model": MODEL, "input": "Hello", "background": True}
    said = [httpx2.post(f"{world.client.base_url}responses", json=body, headers=headers) for _ in range(2)]

    assert said[0].json()["id"] == said[1].json()["id"]
    assert said[1].headers["Idempotency-Replayed"] == "true"
    assert len(world.objects()) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"store": False}, "store"), ({"model": "all-minilm-l6-v2"}, "model")],
)
def test_invalid_requests_are_refused_at_once(world: World, fields: dict[str, Any], param: str) -> None:
    given = {"model": MODEL, "input": "Hello", "background": True, **fields}
    with pytest.raises(openai.BadRequestError) as refused:
        world.client.responses.create(**given)

    assert refused.value.param == param
    assert world.objects() == []


def test_response_job_cannot_be_retried(world: World) -> None:
    made = world.create()
    world.client.responses.cancel(made.id)
    world.inline.drain(made.id)

    with pytest.raises(openai.BadRequestError, match="not retried"):
        world.client.post(f"/jobs/{made.id}/retry", cast_to=object)


def test_retention_preserves_waiting_responses(world: World) -> None:
    made = world.create()
    retention = Retention(world.inline.config, world.inline.db, world.inline.storage)

    retention.run()
    look_twice(world.inline.config, world.inline.db, world.inline.storage)

    assert world.ended(made).status == "completed"


def test_prompt_reaches_engine_once(world: World) -> None:
    asked: list[Request] = []
    answer = world.inline.engine.answer

    async def noting(request: Request) -> Answer:
        asked.append(request)
        return await answer(request)

    world.inline.engine.answer = noting  # type: ignore[method-assign]

    world.ended(world.create([{"role": "user", "content": "only once"}], temperature=0.5))

    [request] = asked
    assert request.body == {
        "model": MODEL, "input": [{"role": "user", "content": "only once"}], "temperature": 0.5, "store": False,
    }  # fmt: skip
