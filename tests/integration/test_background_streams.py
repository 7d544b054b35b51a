"""Responses in the background whose events are followed: through the official SDK, from anywhere in the stream."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest
import redis
from fastapi import FastAPI
from openai import OpenAI
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent

from api.deps import CallContext
from api.inference import stored_answers
from jobs.db.engine import Database
from jobs.errors import StorageUnavailable
from jobs.inference import interactive
from jobs.inference.stored import StoredAnswer
from jobs.ledger import shards
from jobs.security.keys import revoke_key
from jobs.settings import Settings
from tests.support.cited_responses import RESULTS, TEXT, TOOL, citing, found, searching
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL, InlineDeployment, running
from tests.support.system import eventually
from tests.support.web import hurry, make_key, running_app, serve
from workers.engines.port import Answer, Emit, EngineFault, Request, refusal
from workers.inference.background_responses import EventPublisher
from workers.runtime.engine_host import EngineHost

pytestmark = pytest.mark.verify

#: What shows or stores events is the same on every database; what moves a job or reads its end runs on both.
on_sqlite = pytest.mark.parametrize("db", ["sqlite"], indirect=True)

BODY = {"model": MODEL, "input": "Hello"}


@dataclass
class World:
    inline: InlineDeployment
    client: OpenAI
    redis_url: str
    app: FastAPI

    def create(self, **fields: Any) -> Iterator[ResponseStreamEvent]:
        return iter(self.client.responses.create(model=MODEL, input="Hello", background=True, stream=True, **fields))

    def follow(self, response_id: str, after: int | None = None) -> list[ResponseStreamEvent]:
        more = {} if after is None else {"starting_after": after}
        return list(self.client.responses.retrieve(response_id, stream=True, **more))  # type: ignore[call-overload]


@pytest.fixture
def make_world(db: Database, tmp_path: Path, redis_url: str) -> Iterator[Callable[[FakeEngine], World]]:
    with ExitStack() as stack:

        def make(engine: FakeEngine, **settings: Any) -> World:
            given = {"streams_url": redis_url, **settings}
            inline = stack.enter_context(running(db, tmp_path, engine, **given))
            app = stack.enter_context(running_app(tmp_path, db.url, **given))
            url = stack.enter_context(serve(app))
            client = stack.enter_context(OpenAI(base_url=f"{url}/v1", api_key=make_key(app), max_retries=0, timeout=30))
            stop = threading.Event()
            ticking = threading.Thread(target=_tick, args=(inline, stop), daemon=True)
            ticking.start()
            stack.callback(ticking.join)
            stack.callback(stop.set)
            return World(inline, client, redis_url, app)

        yield make


def _tick(inline: InlineDeployment, stop: threading.Event) -> None:
    while not stop.wait(0.01):
        inline.dispatcher.tick()


class Paced(FakeEngine):
    """Tells one event at a time, and breaks once where it is told to. Items have another id in each attempt."""

    def __init__(self, pause: float = 0.03, breaks_after: int | None = None, **facts: Any) -> None:
        super().__init__((MODEL,), **facts)
        self._pause, self._breaks_after = pause, breaks_after
        self._attempts = 0

    async def stream(self, request: Request, emit: Emit) -> Answer:
        told, self._attempts = 0, self._attempts + 1
        own = b"msg_%d" % self._attempts

        async def one(chunk: bytes) -> None:
            nonlocal told
            if self._breaks_after == told:
                self._breaks_after = None
                raise EngineFault("broke")
            told += 1
            await emit(chunk.replace(b"msg_", own))
            await asyncio.sleep(self._pause)

        return await super().stream(request, one)


def _text(events: list[ResponseStreamEvent]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def _finished(world: World) -> str:
    [first, *_] = list(world.create())
    assert first.type == "response.created"
    return first.response.id


def test_events_are_streamed_live_and_last_event_comes_from_ledger(make_world: Any) -> None:
    world = make_world(Paced())

    events = list(world.create())

    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.queued", "response.created"]
    assert kinds[-1] == "response.completed"
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    kept = world.client.responses.retrieve(events[0].response.id)
    assert events[-1].response == kept
    assert events[3].response.id == kept.id
    assert kept.background
    assert _text(events) == kept.output_text


def test_stream_is_resumed_after_the_last_number_seen(make_world: Any) -> None:
    world = make_world(Paced(pause=0.1))
    stream = world.create()
    seen = [next(stream) for _ in range(6)]
    stream.close()  # type: ignore[attr-defined]
    response_id = seen[0].response.id

    rest = world.follow(response_id, seen[-1].sequence_number)
    later = world.follow(response_id, seen[-1].sequence_number)
    whole = world.follow(response_id)

    assert rest[-1].type == "response.completed"
    assert _text(seen + rest) == rest[-1].response.output_text
    assert [event.sequence_number for event in later] == [event.sequence_number for event in rest]
    assert _text(whole) == rest[-1].response.output_text
    assert world.follow(response_id, rest[-1].sequence_number)[-1].type == "response.completed"


@on_sqlite
def test_stream_is_rebuilt_from_answer_without_live_events(make_world: Any) -> None:
    world = make_world(Paced(pause=0.0))
    response_id = _finished(world)
    with redis.Redis.from_url(world.redis_url) as server:
        assert server.delete(interactive.answer_key(response_id)) == 1

    events = world.follow(response_id)
    tail = world.follow(response_id, 1_000_004)

    kept = world.client.responses.retrieve(response_id)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.delta", "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert _text(events) == kept.output_text
    assert [event.type for event in tail] == ["response.completed"]
    assert tail[0].response == kept


@on_sqlite
@pytest.mark.parametrize("told", [True, False])
def test_search_results_of_background_responses_are_shown_on_request(make_world: Any, told: bool) -> None:
    world = make_world(searching(FakeEngine((MODEL,), fault=citing)))
    plain, wanted = (list(world.create(tools=[TOOL], include=include)) for include in (None, RESULTS))
    response_id = plain[0].response.id
    if not told:
        with redis.Redis.from_url(world.redis_url) as server:
            server.delete(interactive.answer_key(response_id))

    events = list(world.client.responses.retrieve(response_id, stream=True, include=RESULTS))

    assert [found(stream[-1].response) for stream in (plain, wanted)] == [None, [TEXT]]  # type: ignore[union-attr]
    assert not any(TEXT in event.to_json() for event in plain)
    assert found(events[-1].response) == [TEXT]
    assert TEXT in next(e for e in events if e.type == "response.output_item.done").to_json()
    assert found(world.client.responses.retrieve(response_id)) is None
    assert found(world.client.responses.retrieve(response_id, include=RESULTS)) == [TEXT]
    assert found(world.client.responses.cancel(response_id)) is None


@on_sqlite
@pytest.mark.parametrize("include", [5, "abc", [5], {}])
def test_an_include_that_is_none_is_refused_before_there_is_a_response(make_world: Any, include: Any) -> None:
    world = make_world(searching(FakeEngine((MODEL,))))

    with pytest.raises(openai.BadRequestError) as refused:
        world.create(tools=[TOOL], include=include)

    assert str(refused.value.param).startswith("include")


@on_sqlite
def test_rebuilt_stream_resumes_after_any_event(make_world: Any) -> None:
    world = make_world(Paced(pause=0.0))
    response_id = _finished(world)
    with redis.Redis.from_url(world.redis_url) as server:
        server.delete(interactive.answer_key(response_id))
    whole = world.follow(response_id)

    rests = [world.follow(response_id, event.sequence_number) for event in whole]

    assert rests[:-1] == [whole[n:] for n in range(1, len(whole))]
    assert [event.type for event in rests[-1]] == ["response.completed"], "its end is told again"


def _helped(events: list[ResponseStreamEvent]) -> Any:
    """Return the answer as the SDK's own helper assembles it. Raises RuntimeError where the events do not fit."""
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=openai.omit, text_format=openai.omit)
    for event in events:
        state.handle_event(event)
    return state._completed_response


def _ids(response: Any) -> list[str]:
    return [item.id for item in response.output]


@on_sqlite
def test_an_attempt_that_breaks_before_its_output_begins_starts_over_in_the_open(make_world: Any) -> None:
    world = make_world(Paced(breaks_after=2))

    events = list(world.create())

    starts = [n for n, event in enumerate(events) if event.type == "response.created"]
    assert len(starts) == 3, "ours, and one of each attempt"
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    assert _text(events[starts[-1] :]) == _helped(events).output_text == events[-1].response.output_text  # type: ignore[union-attr]


@on_sqlite
@pytest.mark.parametrize("breaks_after", [3, 6, 7, 8], ids=["begun", "half told", "text told", "part told"])
def test_an_attempt_that_breaks_in_its_output_is_answered_by_the_last_event(make_world: Any, breaks_after: int) -> None:
    world = make_world(Paced(breaks_after=breaks_after))

    with world.client.responses.stream(model=MODEL, input="Hello", background=True) as stream:
        final = stream.get_final_response()
    whole = world.follow(final.id)
    rest = world.follow(final.id, whole[2].sequence_number)

    kept = world.client.responses.retrieve(final.id)
    assert final.output_text == kept.output_text
    kinds = [event.type for event in whole]
    assert [kinds.count(f"response.{kind}") for kind in ("created", "output_item.added")] == [1, 1]
    assert kinds[-2:] == ["response.output_item.done", "response.completed"]
    assert whole[-2].item == kept.output[0]  # type: ignore[union-attr]
    numbers = [event.sequence_number for event in whole]
    assert numbers == sorted(set(numbers))
    assert rest == whole[3:]
    assert _ids(_helped(whole)) == _ids(kept)


@on_sqlite
def test_attempt_failing_after_its_output_closes_every_item(make_world: Any) -> None:
    world = make_world(Paced(breaks_after=9))

    events = list(world.create())

    assert [event.type for event in events].count("response.output_item.done") == 1
    assert _ids(_helped(events)) == _ids(events[-1].response)  # type: ignore[union-attr]


def _lose(inline: InlineDeployment) -> bool:
    with inline.db.write() as session:
        [(job_id, n, epoch, heartbeat, _)] = shards.running(session)
        return shards.revoke_lease(session, job_id, n, epoch, heartbeat)


def test_next_worker_answers_after_lost_lease(make_world: Any) -> None:
    world = make_world(Paced(pause=0.2), lease_seconds=60.0)
    stream = world.create()
    seen = [next(stream) for _ in range(5)]
    eventually(lambda: _lose(world.inline), 10, "between two heartbeats it is taken from its worker")
    events = seen + list(stream)

    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    assert [event.type for event in events].count("response.output_item.added") == 1
    assert events[-1].sequence_number < 2_000_000, "of the next attempt nothing is told but the answer"
    assert _helped(events).output_text == events[-1].response.output_text  # type: ignore[union-attr]


@on_sqlite
def test_events_of_a_lost_worker_are_not_shown(make_world: Any) -> None:
    world = make_world(Paced(pause=0.1))
    stream = world.create()
    seen = [next(stream) for _ in range(4)]
    response_id = seen[0].response.id

    class Late:
        async def stream(self, _request: Request, emit: Emit) -> Answer:
            await emit(b'{"type":"response.output_text.delta","delta":"LATE","item_id":"x"}')
            return Answer(200, b"late")

    host: Any = SimpleNamespace(engine=Late())
    zombie = EventPublisher(host, Settings(streams_url=world.redis_url), response_id, 0)
    world.inline.host.call(zombie.answer(Request("/v1/responses", BODY, "r"))).result(30)
    with redis.Redis.from_url(world.redis_url) as server:
        assert any(b"LATE" in entry[b"p"] for _, entry in server.xrange(interactive.answer_key(response_id)))
    events = seen + list(stream)

    assert "LATE" not in _text(events)
    assert events[-1].type == "response.completed"


def test_cancelled_response_leaves_no_connection_open(redis_url: str) -> None:
    """Pass where the number of connections falls back before the last wait ends."""
    host = EngineHost(Paced(pause=30.0), lambda: None)
    host.start()
    with redis.Redis.from_url(redis_url) as server:
        before = len(server.client_list())
        asked = host.call(
            EventPublisher(host, Settings(streams_url=redis_url), "resp_gone", 1).answer(
                Request("/v1/responses", BODY, "r")
            )
        )
        eventually(lambda: server.exists(interactive.answer_key("resp_gone")), 10, "it tells its first event")
        asked.cancel()  # and the loop ends in the same breath
        host.close()

        eventually(lambda: len(server.client_list()) == before, 5, "its connection is closed")


@on_sqlite
def test_without_redis_it_is_answered_all_the_same(make_world: Any) -> None:
    world = make_world(Paced(), streams_url="", broker_url="amqp://guest@127.0.0.1//")

    events = list(world.create())

    assert events[-1].type == "response.completed"
    assert _text(events) == events[-1].response.output_text  # type: ignore[union-attr]


def test_a_refusal_ends_it_as_failed(make_world: Any) -> None:
    world = make_world(Paced(fault=lambda _: refusal(400, "Too long.", code="context_length_exceeded")))

    events = list(world.create())

    assert [event.type for event in events] == ["response.created", "response.queued", "response.failed"]
    assert events[-1].response.error.message == "Too long."  # type: ignore[union-attr]


def test_cancelling_just_ends_it(make_world: Any) -> None:
    world = make_world(Paced(pause=1.0))
    stream = world.create()
    seen = [next(stream) for _ in range(3)]
    world.client.responses.cancel(seen[0].response.id)

    with suppress(StopIteration):
        while True:
            seen.append(next(stream))

    assert not any(event.type in ("response.completed", "response.failed") for event in seen)
    assert world.client.responses.retrieve(seen[0].response.id).status == "cancelled"


@on_sqlite
def test_stored_answer_is_reread_after_storage_outage(make_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load, loads = stored_answers.load_response, 0

    def counted(call: CallContext, response_id: str) -> StoredAnswer:
        nonlocal loads
        loads += 1
        if loads == 2:  # the first is that of the request
            raise StorageUnavailable
        return load(call, response_id)

    monkeypatch.setattr("api.inference.stored_answers.load_response", counted)
    world = make_world(Paced(pause=0.15))
    hurry(world.app, response_look=0.05)

    events = list(world.create())

    assert events[-1].type == "response.completed"
    assert loads == 3


def test_stream_ends_at_revocation_of_its_key(make_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(Paced(pause=0.5))
    hurry(world.app, response_look=0.05)
    stream = world.create()
    first = next(stream)
    with world.inline.db.write() as session:
        revoke_key(session, world.client.api_key.split("_")[1])

    rest = list(stream)

    assert first.type == "response.created"
    assert not any(event.type == "response.completed" for event in rest)


def test_idempotency_key_streams_the_same_response(make_world: Any) -> None:
    world = make_world(Paced())
    key = {"Idempotency-Key": "one-of-them"}

    first = list(world.create(extra_headers=key))
    second = list(world.create(extra_headers=key))

    assert first[-1].response == second[-1].response
    assert _text(second) == _text(first)


@on_sqlite
def test_published_events_expire_soon_after_the_end(make_world: Any) -> None:
    world = make_world(Paced(pause=0.2))
    stream = world.create()
    name = interactive.answer_key(next(stream).response.id)
    with redis.Redis.from_url(world.redis_url) as server:
        eventually(lambda: server.ttl(name) > interactive.ENDED_SECONDS, 10, "while it runs it stays, an hour at most")
        list(stream)
        assert 0 < server.ttl(name) <= interactive.ENDED_SECONDS


def test_deletion_removes_live_events(make_world: Any) -> None:
    world = make_world(Paced(pause=0.0))
    response_id = _finished(world)
    with redis.Redis.from_url(world.redis_url) as server:
        assert server.exists(interactive.answer_key(response_id))
        world.client.responses.delete(response_id)
        assert not server.exists(interactive.answer_key(response_id))


@on_sqlite
def test_only_ones_own_can_be_followed_and_numbers_are_numbers(make_world: Any, db: Database) -> None:
    world = make_world(Paced())
    response_id = _finished(world)
    key = {"Authorization": f"Bearer {world.client.api_key}"}
    url = f"{world.client.base_url}responses/{response_id}?stream=true&starting_after="

    assert httpx2.get(url + "x", headers=key).json()["error"]["param"] == "starting_after"
    assert httpx2.get(url + "-2", headers=key).status_code == 400
    with pytest.raises(openai.NotFoundError):
        world.client.responses.retrieve("resp_none", stream=True)
