"""Streams whose client, web process, worker, engine or broker goes away: what a reader sees, and how it resumes.

    endpoint       chat, stored chat, response
    interruption   the client hangs up (once, often), another web process, a restart of the web process, the end
    reader         repeats the request with the id of the last event, or reads the stream's URL

The engine answers `WORDS`, one event a word; `pace` says how long each event takes.
"""

import asyncio
import json
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, aclosing, contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import httpx2
import openai
import pytest
import redis
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import NotFound
from jobs.ids import new_id
from jobs.inference import interactive
from jobs.inference.client import InferenceClient, _is_always_connected
from jobs.inference.interactive import ENTRY_FIELD, AnswerEntry, Resumable, answer_key, pack
from jobs.ledger.tables import Audit
from jobs.queues import Queue
from jobs.security import roles
from jobs.security.accounts import leave_groups
from jobs.security.keys import revoke_key
from jobs.security.tables import Account, AccountGroup, ApiKey, GroupMember, Project, ServiceAccount
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support.fake_engine import prompt_of, reply
from tests.support.interactive_api import (
    CHAT,
    COMPLETION,
    HELLO,
    MODEL,
    RESPONSE,
    STORED_CHAT,
    Endpoint,
    Shop,
    endpoints,
    text_of,
)
from tests.support.system import eventually, pause
from tests.support.web import hurry, running_app, serve
from workers.engines.port import Answer, Emit, Request, refusal

verify = pytest.mark.verify

WORDS = " ".join(map(str, range(40)))
RESUME = {"X-Nightmill-Resume": "30"}
HANGS = 300.0  # seconds: longer than any test waits

Event = dict[str, str]


def _long(request: Request) -> Answer:
    answer = reply(request.url, request.body, prompt_of(request.url, request.body))
    return replace(answer, body=re.sub(rb"echo [0-9a-f]{16}", WORDS.encode(), answer.body))


def pace(shop: Shop, monkeypatch: pytest.MonkeyPatch, between: Callable[[int], Awaitable[object]]) -> None:
    """Have the engine wait for `between(n)` after the n-th event of each stream."""
    stream = shop.engine.stream

    async def paced(request: Request, emit: Emit) -> Answer:
        numbers = count(1)

        async def emit_one(chunk: bytes) -> None:
            await emit(chunk)
            await between(next(numbers))

        return await stream(request, emit_one)

    monkeypatch.setattr(shop.engine, "_fault", _long)
    monkeypatch.setattr(shop.engine, "stream", paced)


def hang_after(shop: Shop, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    pace(shop, monkeypatch, lambda n: asyncio.sleep(HANGS if n == number else 0))


@pytest.fixture
def slow(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Have the engine take two seconds for an answer."""
    pace(shop, monkeypatch, lambda _: asyncio.sleep(0.05))
    return shop


def _headers(shop: Shop, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {shop.client.api_key}", **headers}


def _request(shop: Shop, endpoint: Endpoint, **headers: str) -> AbstractContextManager[httpx2.Response]:
    given = _headers(shop, **headers)
    return httpx2.stream(
        "POST", f"{shop.url}/{endpoint.path}", json={**endpoint.body, "stream": True}, headers=given, timeout=30
    )


@contextmanager
def _post(shop: Shop, endpoint: Endpoint, **headers: str) -> Iterator[Iterator[Event]]:
    """Yield the events of a stream as they come."""
    with _request(shop, endpoint, **headers) as answer:
        assert answer.status_code == 200, answer.read()
        yield _events(answer.iter_lines())


def _ask(shop: Shop, endpoint: Endpoint, headers: dict[str, str], **fields: Any) -> httpx2.Response:
    """Ask for a whole stream."""
    return shop.post(endpoint.path, {**endpoint.body, "stream": True, **fields}, **headers)


def _get(shop: Shop, name: str, **headers: str) -> httpx2.Response:
    return httpx2.get(f"{shop.url}/streams/{name}", headers=_headers(shop, **headers), timeout=30)


def _events(lines: Iterator[str]) -> Iterator[Event]:
    event: Event = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line and name:
            event[name] = value
        elif not line and event:
            yield event
            event = {}


def _events_of(answer: httpx2.Response) -> list[Event]:
    assert answer.status_code == 200, answer.text
    return list(_events(iter(answer.text.split("\n"))))


def _some(events: Iterator[Event], number: int) -> list[Event]:
    return [next(events) for _ in range(number)]


def _name(event: Event) -> str:
    """Return the id of the stream of an event."""
    return event["id"].partition("/")[0]


def _data(event: Event) -> dict[str, Any]:
    data: dict[str, Any] = {} if event["data"] == "[DONE]" else json.loads(event["data"])
    return data


def _text(events: list[Event]) -> str:
    """Return the text of the deltas of a chat or a response."""
    deltas = [data["delta"] for data in map(_data, events) if data.get("type") == "response.output_text.delta"]
    choices = [choice for event in events for choice in _data(event).get("choices", ())]
    return "".join([*deltas, *(choice["delta"].get("content") or "" for choice in choices)])


def _is_end(event: Event) -> bool:
    return event["data"] == "[DONE]" or _data(event).get("type") == "response.completed"


@contextmanager
def _another_web(shop: Shop) -> Iterator[Shop]:
    config = shop.app.state.services.config
    given = {"streams_url": config.streams_url, "models_file": config.models_file}
    with running_app(config.data_dir, config.database_url, **given) as app, serve(app) as url:
        yield replace(shop, app=app, url=f"{url}/v1")


def _hang_up(shop: Shop, endpoint: Endpoint, _: ExitStack) -> tuple[list[Event], Shop]:
    with _post(shop, endpoint, **RESUME) as events:
        seen = _some(events, 5)
    assert (shop.host._in_flight, endpoint.stored_answers(shop.client)) == (1, {}), "it goes on"
    return seen, shop


def _hang_up_often(shop: Shop, endpoint: Endpoint, stack: ExitStack) -> tuple[list[Event], Shop]:
    seen, _ = _hang_up(shop, endpoint, stack)
    for _ in range(3):
        with _post(shop, endpoint, **{"Last-Event-ID": seen[-1]["id"]}) as events:
            seen += _some(events, 3)
    shop.wait_until_free()
    return seen, shop


def _turn_to_another_web(shop: Shop, endpoint: Endpoint, stack: ExitStack) -> tuple[list[Event], Shop]:
    return _hang_up(shop, endpoint, stack)[0], stack.enter_context(_another_web(shop))


def _restart_the_web(shop: Shop, endpoint: Endpoint, stack: ExitStack) -> tuple[list[Event], Shop]:
    with _another_web(shop) as old, _post(old, endpoint, **RESUME) as events:
        seen = _some(events, 5)
        old.app.state.services.stopping.set()
        seen += list(events)
    assert not _is_end(seen[-1])
    return seen, stack.enter_context(_another_web(shop))


def _read_by_request(shop: Shop, endpoint: Endpoint, last: str) -> list[Event]:
    with _post(shop, endpoint, **{"Last-Event-ID": last}) as events:
        return list(events)


def _read_by_url(shop: Shop, _: Endpoint, last: str) -> list[Event]:
    return _events_of(_get(shop, last.partition("/")[0], **{"Last-Event-ID": last}))


@endpoints(STORED_CHAT, RESPONSE, CHAT)
@pytest.mark.parametrize(
    ("interrupt", "read"),
    [
        (_hang_up, _read_by_request),
        (_hang_up, _read_by_url),
        (_hang_up_often, _read_by_url),
        (_turn_to_another_web, _read_by_request),
        (_restart_the_web, _read_by_request),
    ],
)
@pytest.mark.first(1)
def test_reader_gets_the_rest_after_an_interruption(
    slow: Shop, endpoint: Endpoint, interrupt: Callable[..., Any], read: Callable[..., list[Event]]
) -> None:
    with ExitStack() as stack:
        seen, later = interrupt(slow, endpoint, stack)
        rest = read(later, endpoint, seen[-1]["id"])
        whole = _events_of(_get(later, _name(seen[0])))
        behind = read(later, endpoint, rest[-1]["id"])

    assert whole == seen + rest
    assert _text(whole) == WORDS
    assert _is_end(whole[-1])
    assert len({event["id"] for event in whole}) == len(whole)
    assert behind == []
    assert slow.asked == ["Hello"]
    assert [text_of(answer) for answer in endpoint.stored_answers(slow.client).values()] == (
        [WORDS] if endpoint.folder else []
    )


@verify
def test_sdk_passes_over_ids_of_events_and_signs_of_life(
    make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = make_shop()
    pace(shop, monkeypatch, lambda _: asyncio.sleep(0.05))
    with shop.open(timings=replace(Timings(), interactive_alive=0.1)):
        pieces = list(
            shop.client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, extra_headers=RESUME)
        )

    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == WORDS


@verify
@endpoints(CHAT, RESPONSE)
def test_stream_that_cannot_be_resumed_has_no_ids(shop: Shop, endpoint: Endpoint) -> None:
    with _post(shop, endpoint) as events:
        seen = list(events)

    assert len(seen) > 3
    assert not any("id" in event for event in seen)


@pytest.mark.parametrize("deleted", [False, True])
@endpoints(STORED_CHAT, RESPONSE)
@pytest.mark.first(2)
def test_answer_is_stored_once_however_often_its_stream_is_read(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, deleted: bool
) -> None:
    with _post(shop, endpoint, **RESUME) as events:
        seen = list(events)
    stored = endpoint.stored_answers(shop.client)
    [name] = stored
    if deleted:
        shop.client.delete(f"/{endpoint.path}/{name}", cast_to=object)
    before, written = shop.objects(endpoint.folder), list[str]()
    monkeypatch.setattr(shop.app.state.services.storage, "put", lambda path, _: written.append(path))

    rest = _read_by_request(shop, endpoint, seen[2]["id"])
    whole = _events_of(_get(shop, _name(seen[0])))

    assert (rest, whole, written) == (seen[3:], seen, [])
    assert endpoint.stored_answers(shop.client) == ({} if deleted else stored)
    assert shop.objects(endpoint.folder) == before
    assert len(before) == (0 if deleted else 1)
    with shop.app.state.services.db.read() as session:
        actions = session.scalars(select(Audit.action).where(Audit.target == name).order_by(Audit.id)).all()
    assert [action.partition(".")[2] for action in actions] == ["create", *(["delete"] if deleted else [])]


@verify
def test_repeated_reading_of_stream_makes_single_turn(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = shop.client.conversations.create()
    asked = RESPONSE.with_fields(conversation=talk.id)
    pace(shop, monkeypatch, lambda _: asyncio.sleep(0.05))
    with _post(shop, asked, **RESUME) as events:
        first = _some(events, 3)
    ends: list[list[dict[str, Any]]] = []
    for _ in range(2):
        ends.append([_data(event) for event in _read_by_request(shop, RESPONSE, first[-1]["id"])])
        end = ends[-1][-1]["response"]["completed_at"]
        eventually(lambda end=end: time.time() >= end + 1, 10, "it is another second")

    def turns() -> list[str]:
        return [item.type for item in shop.client.conversations.items.list(talk.id)]

    numbers = [_data(event)["sequence_number"] for event in first]
    assert numbers + [event["sequence_number"] for event in ends[0]] == list(range(len(numbers) + len(ends[0])))
    assert ends[0] == ends[1]
    stored = shop.client.responses.retrieve(ends[0][-1]["response"]["id"])
    assert _data(first[0])["response"]["id"] == stored.id
    assert stored.output_text == WORDS
    assert turns() == ["message", "message"]
    shop.client.responses.delete(stored.id)
    _read_by_request(shop, asked, first[-1]["id"])
    assert turns() == ["message", "message"]


@endpoints(STORED_CHAT)
@pytest.mark.parametrize("deleted", [False, True])
def test_concurrent_writers_leave_single_object_named_by_row(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, deleted: bool
) -> None:
    storage, go_on = shop.app.state.services.storage, threading.Event()
    put, objects = storage.put, list[bytes]()
    pace(shop, monkeypatch, lambda _: asyncio.to_thread(go_on.wait, 20))

    def put_after_another_writer(path: str, data: bytes) -> None:
        monkeypatch.setattr(storage, "put", lambda path, data: objects.append(data) or put(path, data))
        _get(shop, name)
        if deleted:
            [stored] = endpoint.stored_answers(shop.client)
            shop.client.delete(f"/{endpoint.path}/{stored}", cast_to=object)
        objects.append(data)
        put(path, data)

    with _post(shop, endpoint, **RESUME) as events:
        seen = _some(events, 1)
        name = _name(seen[0])
        monkeypatch.setattr(storage, "put", put_after_another_writer)
        go_on.set()
        seen += list(events)

    assert _is_end(seen[-1])
    assert json.loads(objects[0]) == json.loads(objects[1])
    assert len(endpoint.stored_answers(shop.client)) == len(shop.objects(endpoint.folder)) == (0 if deleted else 1)


@verify
def test_redis_has_request_at_most_twice_during_stream(slow: Shop) -> None:
    """Once as the model is shown it, and once as what is new of it."""
    with _post(slow, RESPONSE.with_fields(input="Tell me of the sea"), **RESUME) as events:
        [first] = _some(events, 1)
        with redis.Redis.from_url(slow.redis_url) as server:
            request = server.get(interactive.resumable_key(_name(first)))

    assert isinstance(request, bytes)
    assert request.count(b"Tell me of the sea") == 2


@verify
def test_stream_not_resumed_in_time_is_removed_and_frees_engine(
    make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = make_shop(timings=replace(Timings(), interactive_present=1))
    hang_after(shop, monkeypatch, 1)
    with shop.open():
        with _post(shop, CHAT, **{"X-Nightmill-Resume": "1"}) as events:
            [first] = _some(events, 1)
        left = time.monotonic()
        shop.wait_until_free()
        assert time.monotonic() - left > 0.5
        gone = _ask(shop, CHAT, {"Last-Event-ID": first["id"]})

    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "stream_gone")


@pytest.mark.parametrize("seen", [0, 2])
@endpoints(STORED_CHAT, RESPONSE)
@pytest.mark.first(2)
def test_client_that_leaves_a_stream_frees_the_engine_and_leaves_nothing_stored(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, seen: int
) -> None:
    """Before the first event the stream is late and has its status, so that the client sees a sign of life."""
    hurry(shop.app, first_chunk_patience=0.3)
    hang_after(shop, monkeypatch, 2)
    monkeypatch.setattr(shop.engine, "_delay", 0.0 if seen else HANGS)
    with _request(shop, endpoint) as answer:
        lines = answer.iter_lines()
        [next(_events(lines)) if seen else next(lines) for _ in range(seen or 1)]
        assert shop.host._in_flight == 1

    shop.wait_until_free()

    assert (endpoint.stored_answers(shop.client), shop.objects(endpoint.folder)) == ({}, [])


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_times_out_before_an_answer_frees_the_engine(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(shop.engine, "_delay", HANGS)
    with pytest.raises(openai.APITimeoutError):
        shop.client.with_options(timeout=1.0).chat.completions.create(model=MODEL, messages=HELLO, stream=stream)
    assert shop.host._in_flight == 1

    shop.wait_until_free()


def test_slow_client_is_served_until_it_disconnects(
    make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers between client and server fill up, so that the server waits for the client in one write."""
    shop = make_shop(timings=replace(Timings(), interactive_present=1, interactive_renew=0.2))
    told = 0

    async def stream(_: Request, emit: Emit) -> Answer:
        nonlocal told
        while told < 2000:
            await emit(b'{"choices":[{"index":0,"delta":{"content":"%b"}}]}' % (b"x" * 65_536))
            told += 1
            await asyncio.sleep(0.005)
        return Answer(200, b"")

    monkeypatch.setattr(shop.engine, "stream", stream)
    with shop.open(unread_bytes=1 << 30):
        with _request(shop, CHAT) as answer:
            assert answer.status_code == 200
            pause(2.0)
            before = told
            pause(0.5)
            still = (told > before, shop.host._in_flight)
        shop.wait_until_free()

    assert still == (True, 1)


def _leave_group(session: Session, key: ApiKey) -> None:
    leave_groups(session, str(key.owner_id), ["group_1"])


#: What ends a key that a stream is read with.
ENDS: dict[str, Callable[[Session, ApiKey], object]] = {
    "revocation": lambda session, key: revoke_key(session, key.id),
    "expiry": lambda _, key: setattr(key, "expires_at", now()),
    "archive": lambda session, key: setattr(session.get_one(Project, key.project_id), "archived_at", now()),
    "deletion of its account": lambda session, key: setattr(
        session.get_one(ServiceAccount, key.owner_id), "deleted_at", now()
    ),
    "removal from the group": _leave_group,
}


def _give_to_member_of_group(session: Session, key: ApiKey) -> None:
    """Give a key to a person whose only role is that of a group."""
    session.add(Account(id="user_1", email="ann@example.com", created_at=now()))
    session.add(AccountGroup(id="group_1", name="team", created_at=now()))
    session.add(GroupMember(group_id="group_1", account_id="user_1", created_at=now()))
    roles.assign(session, "role-project-member", "group_1", key.project_id, "operator")
    key.owner_id = "user_1"


@verify
@pytest.mark.parametrize("end", ENDS)
def test_stream_ends_with_its_key(shop: Shop, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    hurry(shop.app, key_look=0.1)
    hang_after(shop, monkeypatch, 3)
    db, key_id = shop.app.state.services.db, shop.client.api_key.split("_")[1]
    if ENDS[end] is _leave_group:
        with db.write() as session:
            _give_to_member_of_group(session, session.get_one(ApiKey, key_id))
    with _post(shop, CHAT) as events:
        _some(events, 3)
        with db.write() as session:
            ENDS[end](session, session.get_one(ApiKey, key_id))
        [last] = events
        shop.wait_until_free()

    assert _data(last)["error"]["code"] == "invalid_api_key"


@verify
def test_stopped_stream_is_removed_and_frees_engine(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    hang_after(shop, monkeypatch, 3)
    with _post(shop, CHAT, **RESUME) as events:
        name = _name(_some(events, 3)[0])
        stopped: Any = shop.client.delete(f"/streams/{name}", cast_to=object)
        shop.wait_until_free()
        [last] = events

    assert stopped == {"id": name, "object": "stream", "stopped": True}
    assert _data(last)["error"]["code"] == "stream_stopped"
    assert _get(shop, name).status_code == 404


@verify
def test_no_other_project_reads_or_stops_a_stream(slow: Shop) -> None:
    stranger = replace(slow, client=slow.stranger())
    with _post(slow, CHAT, **RESUME) as events:
        [first] = _some(events, 1)
        url, last = f"{slow.url}/streams/{_name(first)}", {"Last-Event-ID": first["id"]}
        for refused in (
            _get(stranger, _name(first)),
            httpx2.delete(url, headers=_headers(stranger)),
            _ask(stranger, CHAT, last),
        ):
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "stream_gone")
        assert _text([first, *events]) == WORDS


_NEVER = f"req_{'a' * 24}"


@pytest.mark.parametrize(
    ("endpoint", "headers", "fields", "status", "param"),
    [
        (STORED_CHAT, RESUME, {"stream": False}, 400, "X-Nightmill-Resume"),
        (CHAT, RESUME, {"stream": False}, 400, "X-Nightmill-Resume"),
        (CHAT, {"X-Nightmill-Resume": "0"}, {}, 400, "X-Nightmill-Resume"),
        (CHAT, {"X-Nightmill-Resume": "601"}, {}, 400, "X-Nightmill-Resume"),
        (CHAT, {"X-Nightmill-Resume": "soon"}, {}, 400, "X-Nightmill-Resume"),
        (CHAT, {"Last-Event-ID": "7"}, {}, 400, "Last-Event-ID"),
        (CHAT, {"Last-Event-ID": f"{_NEVER}/1-x"}, {}, 400, "Last-Event-ID"),
        (CHAT, {"Last-Event-ID": f"{_NEVER}/{1 << 64}-0"}, {}, 400, "Last-Event-ID"),
        (CHAT, {"Last-Event-ID": f"{_NEVER}/1-{1 << 64}"}, {}, 400, "Last-Event-ID"),
        (CHAT, {"Last-Event-ID": f"{_NEVER}/1-0"}, {}, 404, "Last-Event-ID"),
        (RESPONSE, RESUME, {"stream": False}, 400, "X-Nightmill-Resume"),
        (RESPONSE, RESUME, {"background": True}, 400, "X-Nightmill-Resume"),
        (RESPONSE, RESUME, {"store": False, "conversation": "conv_x"}, 400, "store"),
    ],
)
@pytest.mark.first(1)
def test_unresumable_request_is_refused_before_engine_call(
    shop: Shop, endpoint: Endpoint, headers: dict[str, str], fields: dict[str, Any], status: int, param: str
) -> None:
    refused = _ask(shop, endpoint, headers, **fields)

    assert (refused.status_code, refused.json()["error"]["param"], shop.asked) == (status, param, [])


@verify
def test_event_of_another_endpoint_is_refused(slow: Shop) -> None:
    with _post(slow, CHAT, **RESUME) as events:
        [first] = _some(events, 1)

    refused = _ask(slow, RESPONSE, {"Last-Event-ID": first["id"]})

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Last-Event-ID")


@endpoints(CHAT, RESPONSE)
def test_stream_that_pauses_shows_signs_of_life_that_no_proxy_holds_back(
    make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint
) -> None:
    shop = make_shop()
    pace(shop, monkeypatch, lambda n: asyncio.sleep(0.15 if n < 8 else 0))
    with shop.open(timings=replace(Timings(), interactive_alive=0.1, interactive_look=0.1)):
        answer = _ask(shop, endpoint, {})

    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.text.count(": alive\n") > 1
    assert not answer.text.startswith(":")


@endpoints(CHAT, STORED_CHAT, COMPLETION, RESPONSE)
def test_stream_that_is_late_has_its_status_and_signs_of_life_before_a_worker_takes_it(
    make_shop: Callable[..., Shop], endpoint: Endpoint
) -> None:
    shop = make_shop(timings=replace(Timings(), first_chunk_patience=0.3, interactive_late=0.2))
    shop.announce("gpu-1")
    with _request(shop, endpoint) as answer:
        lines = answer.iter_lines()
        first = [next(lines) for _ in range(3)]
        assert (answer.status_code, shop.asked) == (200, [])
        with shop.open():
            rest = list(lines)

    assert first == [": alive"] * 3
    assert "data: [DONE]" in rest or "event: response.completed" in rest
    assert shop.asked == ["Hello"]


def test_sdk_passes_over_signs_that_a_stream_is_late(shop: Shop) -> None:
    hurry(shop.app, first_chunk_patience=0.0, interactive_late=0.0)
    chunks = list(shop.client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    with shop.client.responses.stream(model=MODEL, input="Hello") as stream:
        response = stream.get_final_response()

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == response.output_text


@verify
@pytest.mark.parametrize("headers", [{}, RESUME], ids=["plain", "resumable"])
def test_refusal_after_a_stream_has_its_status_is_an_event_of_the_stream(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    monkeypatch.setattr(shop.engine, "_delay", 2.0)
    monkeypatch.setattr(shop.engine, "_fault", lambda _: refusal(400, "Too long.", code="context_length_exceeded"))
    hurry(shop.app, first_chunk_patience=0.3)
    given: dict[str, Any] = {"model": MODEL, "stream": True, "extra_headers": headers}
    told = []
    for more in ({}, {"store": True}):
        with pytest.raises(openai.APIError) as refused:
            list(shop.client.chat.completions.create(messages=HELLO, **given, **more))
        told.append((type(refused.value), refused.value.code))
    events = list(shop.client.responses.create(input="Hello", **given))

    assert told == [(openai.APIError, "context_length_exceeded")] * 2
    assert [(event.type, event.code) for event in events] == [("error", "context_length_exceeded")]


@pytest.mark.parametrize(
    ("began", "stream"),
    [(False, False), (True, False), (True, True)],
    ids=["before it began", "after it began", "while a stream is late"],
)
def test_lost_worker_is_reported_to_client(make_shop: Callable[..., Shop], began: bool, stream: bool) -> None:
    times = replace(Timings(), interactive_silence=0.8, interactive_taken=0.4, first_chunk_patience=0.3)
    shop = make_shop(timings=times)
    shop.announce("gpu-1")
    dying = threading.Thread(target=_take_and_die, args=(shop, began))
    dying.start()

    with pytest.raises(openai.APIError) as told:
        list(shop.client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream))

    dying.join(30)
    kind = openai.APIError if stream else openai.InternalServerError
    assert (type(told.value), told.value.code) == (kind, "worker_lost")


def _take_and_die(shop: Shop, began: bool) -> None:
    with redis.Redis.from_url(shop.redis_url) as server:
        _, raw = server.blpop([interactive.queue_key(Queue.GENERATE)], timeout=10)
        if began:
            name = answer_key(interactive.unpack_request(raw).id)
            server.xadd(name, {ENTRY_FIELD: pack(AnswerEntry("taken"))})


@verify
def test_stream_is_resumed_before_its_first_event(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop.engine, "_delay", 2.0)
    hurry(shop.app, first_chunk_patience=0.3)
    with _request(shop, CHAT, **RESUME) as answer:
        name = answer.headers["X-Nightmill-Stream"]
        assert next(answer.iter_lines()) == ": alive"

    assert _is_end(_events_of(_get(shop, name))[-1])
    assert shop.asked == ["Hello"]


@verify
@pytest.mark.parametrize("stops", [False, True])
def test_queued_stream_is_resumed_or_stopped(
    make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    shop = make_shop()
    pace(shop, monkeypatch, lambda _: asyncio.sleep(0.1))
    hurry(shop.app, first_chunk_patience=0.3)
    with shop.open(concurrent=1), _post(shop, CHAT) as first:
        seen = _some(first, 1)
        with _request(shop, CHAT.with_fields(messages=[{"role": "user", "content": "Second"}]), **RESUME) as two:
            name = two.headers["X-Nightmill-Stream"]
            assert next(two.iter_lines()) == ": alive"
        url, headers = f"{shop.url}/streams/{name}", _headers(shop)
        answer = (httpx2.delete if stops else httpx2.get)(url, headers=headers, timeout=30)
        assert answer.status_code == 200
        seen += list(first)
        later = _get(shop, name)
        shop.wait_until_free()

    assert _text(seen) == WORDS
    if stops:
        assert (answer.json()["stopped"], later.status_code) == (True, 404)
    else:
        assert _text(_events_of(answer)) == WORDS


@verify
def test_stream_that_no_worker_takes_is_resumed_with_an_error(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(timings=replace(Timings(), first_chunk_patience=0.3, interactive_taken=0.3))
    shop.announce("gpu-1")
    with _request(shop, CHAT, **RESUME) as answer:
        name = answer.headers["X-Nightmill-Stream"]
        assert next(answer.iter_lines()) == ": alive"
    shop.leave("gpu-1")

    assert '"code":"no_worker"' in _get(shop, name).text.replace(": ", ":")


@verify
def test_read_entries_that_stay_for_resuming_do_not_count_as_unread(
    make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("jobs.inference.client", "workers.inference.answer_writer"):
        monkeypatch.setattr(f"{module}.AT_ONCE", 4)
        monkeypatch.setattr(f"{module}.BEHIND", 16)
    shop = make_shop()
    pace(shop, monkeypatch, lambda _: asyncio.sleep(0.05))
    with shop.open(unread=10), _post(shop, CHAT, **RESUME) as events:
        assert _text(list(events)) == WORDS


@verify
def test_read_entries_are_dropped_except_the_last_of_a_resumable_stream(
    slow: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.inference.client.AT_ONCE", 4)
    monkeypatch.setattr("jobs.inference.client.BEHIND", 8)
    with redis.Redis.from_url(slow.redis_url) as server:
        before = set(server.keys(answer_key("req_*")))
        for headers, limit in (({}, 12), (RESUME, 20)):
            with _post(slow, CHAT, **headers) as events:
                seen = _some(events, 30)
                [name] = set(server.keys(answer_key("req_*"))) - before
                assert server.xlen(name) <= limit
            before.add(name)
    gone = _get(slow, _name(seen[0]), **{"Last-Event-ID": seen[0]["id"]})

    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "stream_gone")


def test_stored_stream_without_beginning_is_not_resumed(slow: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.inference.client.BEHIND", 0)
    monkeypatch.setattr("jobs.inference.client.AT_ONCE", 1)
    with _post(slow, STORED_CHAT, **RESUME) as events:
        seen = _some(events, 2)

    gone = _ask(slow, STORED_CHAT, {"Last-Event-ID": seen[-1]["id"]})

    assert (gone.status_code, gone.json()["error"]["code"], slow.objects(STORED_CHAT.folder)) == (
        404,
        "stream_gone",
        [],
    )


def test_stream_with_a_dropped_unread_entry_ends_with_an_error_and_is_not_stored(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another reader does, who is further on."""
    go_on = threading.Event()
    monkeypatch.setattr("jobs.inference.client.AT_ONCE", 1)  # whoever drops leaves more than that
    pace(shop, monkeypatch, lambda _: asyncio.to_thread(go_on.wait, 20))
    with _post(shop, STORED_CHAT, **RESUME) as events, redis.Redis.from_url(shop.redis_url) as server:
        seen = _some(events, 1)
        name = answer_key(_name(seen[0]))
        with server.pipeline() as pipe:
            pipe.xadd(name, {ENTRY_FIELD: pack(AnswerEntry("chunk", seen[0]["data"].encode()))})
            pipe.xtrim(name, maxlen=0, approximate=False)
            pipe.execute()
        go_on.set()
        seen += list(events)

    assert [_data(event).get("error", {}).get("code") for event in seen] == [None, "stream_gone"]
    assert (STORED_CHAT.stored_answers(shop.client), shop.objects(STORED_CHAT.folder)) == ({}, [])


@verify
@pytest.mark.parametrize("read", [0, 2], ids=["before the first is read", "while it is read"])
async def test_resuming_behind_dropped_entries_is_an_error_and_leaves_no_gap(
    redis_url: str, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.inference.client.AT_ONCE", 2)
    name = new_id("req_")
    resumable = Resumable("tenant", "/v1/chat/completions", now() + 60, 30, b"")
    pieces = [AnswerEntry("taken"), *(AnswerEntry("chunk", str(n).encode()) for n in range(4)), AnswerEntry("end")]
    client = InferenceClient(Settings(streams_url=redis_url))

    async def is_served() -> bool:
        return True

    async with (
        interactive.connect(redis_url) as server,
        aclosing(client.resume(name, "0-0", resumable, _is_always_connected, is_served)) as rest,
    ):

        async def write(*entries: AnswerEntry) -> list[bytes]:
            return [await server.xadd(answer_key(name), {ENTRY_FIELD: pack(entry)}) for entry in entries]

        await write(*pieces[:read])
        seen = [await anext(rest) for _ in range(read)]
        *_, oldest, _, _ = await write(*pieces[read:])
        await server.xtrim(answer_key(name), minid=oldest, approximate=False)  # more than AT_ONCE stay
        with pytest.raises(NotFound) as gone:
            seen += [piece async for piece in rest]
    await client.close()

    assert ([piece.kind for piece in seen], gone.value.code) == (["taken", "chunk"][:read], "stream_gone")
