"""Streams that break and are come back to: from the same process, from another, after a restart; and those that end."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import redis

from jobs.clock import now
from jobs.errors import NotFound
from jobs.ids import new_id
from jobs.inference import interactive, responses
from jobs.inference.client import InferenceClient, _always
from jobs.inference.interactive import AnswerEntry, QueuedRequest, Resumable, pack
from jobs.queues import Queue
from jobs.security.keys import revoke_key
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support.fake_engine import CREATED
from tests.support.shop import MODEL, Shop
from tests.support.system import eventually
from tests.support.web import hurry, running_app, serve
from workers.engines.port import Answer, Emit, Request

pytestmark = pytest.mark.verify

_HELLO: Any = [{"role": "user", "content": "Hello"}]
_CHAT = {"model": MODEL, "messages": _HELLO, "stream": True}
_RESUME = {"X-Nightmill-Resume": "30"}
_WORDS = 40

Event = dict[str, str]


@pytest.fixture
def shop(make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Its engine takes two seconds for forty words."""
    shop = make_shop()
    monkeypatch.setattr(shop.engine, "stream", _slowly(shop, 0.05))
    return shop


def _slowly(shop: Shop, pause: float) -> Callable[[Request, Emit], Any]:
    stream = shop.engine.stream

    async def slowly(request: Request, emit: Emit) -> Answer:
        async def one(chunk: bytes) -> None:
            await emit(chunk)
            await asyncio.sleep(pause * 4)

        if request.url == "/v1/responses":
            return await stream(request, one)
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": CREATED, "model": MODEL}
        for n in range(_WORDS):
            await emit(json.dumps({**head, "choices": [{"index": 0, "delta": {"content": f"{n} "}}]}).encode())
            await asyncio.sleep(pause)
        return Answer(200, b"")

    return slowly


@contextmanager
def _post(
    shop: Shop, body: dict[str, Any], path: str = "chat/completions", **headers: str
) -> Iterator[Iterator[Event]]:
    """Yield the events of a stream as they come."""
    given = {"Authorization": f"Bearer {shop.client.api_key}", **headers}
    with httpx2.stream("POST", f"{shop.url}/{path}", json=body, headers=given, timeout=30) as said:
        assert said.status_code == 200, said.read()
        yield _events(said.iter_lines())


async def _yes() -> bool:
    return True


def _events(lines: Iterator[str]) -> Iterator[Event]:
    event: Event = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line and name:
            event[name] = value
        elif not line and event:
            yield event
            event = {}


def _text(events: list[Event]) -> str:
    return "".join(
        json.loads(event["data"])["choices"][0]["delta"]["content"] for event in events if event["data"] != "[DONE]"
    )


_FREE_SECONDS = 3.0  # a second on a machine that does nothing else
_WHOLE = "".join(f"{n} " for n in range(_WORDS))


def _some(events: Iterator[Event], count: int) -> list[Event]:
    return [next(events) for _ in range(count)]


def _free(shop: Shop, within: float) -> float:
    """Return the seconds until the engine is free."""
    began = time.monotonic()
    eventually(lambda: shop.host._in_flight == 0, 10, "the engine is free")
    took = time.monotonic() - began
    assert took < within, f"it took {took:.2f} s"
    return took


def test_every_event_has_an_id_and_the_sdk_does_not_mind_not_even_beside_signs_of_life(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shop.open(timings=replace(Timings(), interactive_alive=0.1)):
        with _post(shop, _CHAT, **_RESUME) as events:
            seen = list(events)
        pieces = list(
            shop.client.chat.completions.create(model=MODEL, messages=_HELLO, stream=True, extra_headers=_RESUME)
        )

    assert len({event["id"] for event in seen}) == len(seen) == _WORDS + 1
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == _WHOLE


@pytest.mark.parametrize(
    ("path", "body"), [("chat/completions", _CHAT), ("responses", {"model": MODEL, "input": "Hello", "stream": True})]
)
def test_a_stream_that_cannot_be_resumed_has_no_ids_that_a_client_would_come_back_with(
    shop: Shop, path: str, body: dict[str, Any]
) -> None:
    with shop.open(), _post(shop, body, path) as events:
        seen = list(events)

    assert len(seen) > 3
    assert not any("id" in event for event in seen)


def test_the_rest_comes_after_the_connection_broke_and_the_model_is_asked_once(shop: Shop) -> None:
    with shop.open():
        with _post(shop, _CHAT, **_RESUME) as events:
            first = _some(events, 5)
        assert shop.host._in_flight == 1, "it goes on"
        with _post(shop, _CHAT, **{"Last-Event-ID": first[-1]["id"]}) as events:
            second = list(events)

    assert _text(first + second) == _WHOLE
    assert second[-1]["data"] == "[DONE]"


def test_stream_is_resumed_repeatedly_also_by_its_url_and_after_its_end(shop: Shop) -> None:
    with shop.open():
        with _post(shop, _CHAT, **_RESUME) as events:
            seen = _some(events, 2)
        for _ in range(3):
            with _post(shop, _CHAT, **{"Last-Event-ID": seen[-1]["id"]}) as events:
                seen += _some(events, 3)
        name = seen[0]["id"].partition("/")[0]
        eventually(lambda: shop.host._in_flight == 0, 10, "it has ended")
        key = {"Authorization": f"Bearer {shop.client.api_key}"}
        rest = httpx2.get(f"{shop.url}/streams/{name}", headers={**key, "Last-Event-ID": seen[-1]["id"]})
        whole = httpx2.get(f"{shop.url}/streams/{name}", headers=key)

    assert _text(seen + list(_events(iter(rest.text.split("\n"))))) == _WHOLE
    assert _text(list(_events(iter(whole.text.split("\n"))))) == _WHOLE


def test_behind_its_end_there_is_nothing_and_that_is_said_at_once(shop: Shop) -> None:
    with shop.open():
        with _post(shop, _CHAT, **_RESUME) as events:
            seen = list(events)
        began = time.monotonic()
        with _post(shop, _CHAT, **{"Last-Event-ID": seen[-1]["id"]}) as events:
            rest = list(events)

    assert seen[-1]["data"] == "[DONE]"
    assert rest == []
    assert time.monotonic() - began < 10


def test_another_process_of_the_api_has_the_rest(shop: Shop, tmp_path: Path, sqlite_url: str) -> None:
    models = str(tmp_path / "models.yaml")
    with shop.open(), running_app(tmp_path, sqlite_url, streams_url=shop.redis_url, models_file=models) as other:
        with _post(shop, _CHAT, **_RESUME) as events:
            first = _some(events, 5)
        with serve(other) as url:
            shop.url = f"{url}/v1"
            with _post(shop, _CHAT, **{"Last-Event-ID": first[-1]["id"]}) as events:
                second = list(events)

    assert _text(first + second) == _WHOLE


def test_a_restart_of_the_api_breaks_it_off_without_a_word_and_the_next_has_the_rest(
    shop: Shop, tmp_path: Path, sqlite_url: str
) -> None:
    models = str(tmp_path / "models.yaml")

    def one() -> Any:
        return running_app(tmp_path, sqlite_url, streams_url=shop.redis_url, models_file=models)

    with shop.open():
        with one() as old, serve(old) as url:
            shop.url = f"{url}/v1"
            with _post(shop, _CHAT, **_RESUME) as events:
                first = _some(events, 5)
                old.state.services.stopping.set()
                first += list(events)
        with one() as new, serve(new) as url:
            shop.url = f"{url}/v1"
            with _post(shop, _CHAT, **{"Last-Event-ID": first[-1]["id"]}) as events:
                second = list(events)

    assert len(first) < _WORDS
    assert _text(first + second) == _WHOLE


def test_a_response_is_kept_once_whoever_shows_its_end(shop: Shop) -> None:
    body = {"model": MODEL, "input": "Hello", "stream": True}
    talk = shop.client.conversations.create()
    with shop.open():
        with _post(shop, {**body, "conversation": talk.id}, "responses", **_RESUME) as events:
            first = _some(events, 3)
        ends: list[list[dict[str, Any]]] = []
        for _ in range(2):
            with _post(shop, body, "responses", **{"Last-Event-ID": first[-1]["id"]}) as events:
                ends.append([json.loads(event["data"]) for event in events])
            told = ends[-1][-1]["response"]["completed_at"]
            eventually(lambda told=told: time.time() >= told + 1, 10, "it is another second")

    numbers = [json.loads(event["data"])["sequence_number"] for event in first]
    assert numbers + [event["sequence_number"] for event in ends[0]] == list(range(len(numbers) + len(ends[0])))
    assert ends[0] == ends[1]
    kept = shop.client.responses.retrieve(ends[0][-1]["response"]["id"])
    assert json.loads(first[0]["data"])["response"]["id"] == kept.id
    assert kept.output_text == ends[0][-1]["response"]["output"][0]["content"][0]["text"]
    assert [item.type for item in shop.client.conversations.items.list(talk.id)] == ["message", "message"]


def test_a_deleted_response_does_not_come_back_with_whoever_comes_back_to_its_stream(shop: Shop) -> None:
    talk = shop.client.conversations.create()
    body = {"model": MODEL, "input": "Hello", "stream": True, "conversation": talk.id}
    with shop.open():
        with _post(shop, body, "responses", **_RESUME) as events:
            seen = list(events)
        name = json.loads(seen[-1]["data"])["response"]["id"]
        shop.client.responses.delete(name)
        with _post(shop, body, "responses", **{"Last-Event-ID": seen[2]["id"]}) as events:
            again = list(events)

    assert [event["data"] for event in again] == [event["data"] for event in seen[3:]]
    with pytest.raises(openai.NotFoundError):
        shop.client.responses.retrieve(name)
    with pytest.raises(NotFound):
        shop.app.state.services.storage.size(responses.path(name))
    assert [item.type for item in shop.client.conversations.items.list(talk.id)] == ["message", "message"]


@pytest.mark.parametrize("deleted", [False, True])
def test_a_response_that_was_kept_is_not_written_again_by_whoever_comes_back_to_its_stream(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    talk = shop.client.conversations.create()
    body = {"model": MODEL, "input": "Hello", "stream": True, "conversation": talk.id}
    with shop.open():
        with _post(shop, body, "responses", **_RESUME) as events:
            seen = list(events)
        if deleted:
            shop.client.responses.delete(json.loads(seen[-1]["data"])["response"]["id"])
        written: list[str] = []
        monkeypatch.setattr(shop.app.state.services.storage, "put", lambda path, _: written.append(path))
        with _post(shop, body, "responses", **{"Last-Event-ID": seen[2]["id"]}) as events:
            again = list(events)

    assert (again, written) == (seen[3:], [])


def test_request_is_stored_at_most_twice_beside_the_stream_of_a_response(shop: Shop) -> None:
    """Once as the model is shown it, and once as what is new of it."""
    body = {"model": MODEL, "input": "Tell me of the sea", "stream": True}
    with shop.open(), _post(shop, body, "responses", **_RESUME) as events:
        [first] = _some(events, 1)
        with redis.Redis.from_url(shop.redis_url) as server:
            kept = server.get(interactive.resumable_key(first["id"].partition("/")[0]))

    assert isinstance(kept, bytes)
    assert kept.count(b"Tell me of the sea") == 2


def test_nobody_comes_back_and_the_engine_is_free_when_the_time_is_over(
    make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = make_shop(timings=replace(Timings(), interactive_present=1))
    monkeypatch.setattr(shop.engine, "stream", _slowly(shop, 1.0))
    with shop.open():
        with _post(shop, _CHAT, **{"X-Nightmill-Resume": "1"}) as events:
            [first] = _some(events, 1)
        left = time.monotonic()
        eventually(lambda: shop.host._in_flight == 0, 10, "the engine is free")
        assert 0.5 < time.monotonic() - left < 8
        with pytest.raises(openai.NotFoundError) as gone:
            shop.client.post(
                "/chat/completions", body=_CHAT, cast_to=object, options={"headers": {"Last-Event-ID": first["id"]}}
            )

    assert gone.value.code == "stream_gone"


@pytest.mark.parametrize(("stream", "seen"), [(False, 0), (True, 0), (True, 5)])
def test_disconnected_client_frees_the_engine_soon(
    make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch, stream: bool, seen: int
) -> None:
    shop = make_shop({} if seen else {"delay": 30.0})
    if seen:
        monkeypatch.setattr(shop.engine, "stream", _slowly(shop, 0.05))
    took = []
    with shop.open():
        for _ in range(3):
            if seen:
                with _post(shop, _CHAT) as events:
                    _some(events, seen)
            else:
                with pytest.raises(openai.APITimeoutError):
                    shop.client.with_options(timeout=0.7).chat.completions.create(
                        model=MODEL, messages=_HELLO, stream=stream
                    )
            assert shop.host._in_flight == 1
            took.append(_free(shop, _FREE_SECONDS))
    print(f"free after {max(took):.2f} s at worst")


def test_a_stream_ends_with_the_key_that_it_was_asked_for_with(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(shop.app, key_look=0.1)
    with shop.open(), _post(shop, _CHAT) as events:
        _some(events, 3)
        with shop.app.state.services.db.write() as session:
            revoke_key(session, shop.client.api_key.split("_")[1])
        rest = list(events)
        _free(shop, _FREE_SECONDS)

    assert json.loads(rest[-1]["data"])["error"]["code"] == "invalid_api_key"
    assert len(rest) < _WORDS - 3


def test_stopped_it_frees_the_engine_soon_and_is_gone(shop: Shop) -> None:
    with shop.open():
        with _post(shop, _CHAT, **_RESUME) as events:
            seen = _some(events, 3)
            name = seen[0]["id"].partition("/")[0]
            said: Any = shop.client.delete(f"/streams/{name}", cast_to=object)
            _free(shop, _FREE_SECONDS)
            last = list(events)[-1]
        with pytest.raises(openai.NotFoundError):
            shop.client.get(f"/streams/{name}", cast_to=object)

    assert said == {"id": name, "object": "stream", "stopped": True}
    assert json.loads(last["data"])["error"]["code"] == "stream_stopped"


def test_no_other_project_reads_or_stops_it(shop: Shop) -> None:
    with shop.open(), _post(shop, _CHAT, **_RESUME) as events:
        [first] = _some(events, 1)
        name = first["id"].partition("/")[0]
        stranger = shop.stranger()
        told = {"headers": {"Last-Event-ID": first["id"]}}
        for ask in (
            lambda: stranger.get(f"/streams/{name}", cast_to=object),
            lambda: stranger.delete(f"/streams/{name}", cast_to=object),
            lambda: stranger.post("/chat/completions", body=_CHAT, cast_to=object, options=told),
        ):
            with pytest.raises(openai.NotFoundError) as refused:
                ask()
            assert refused.value.code == "stream_gone"
        assert _text([first, *events]) == _WHOLE


@pytest.mark.parametrize(
    ("headers", "body", "status", "param"),
    [
        ({"Last-Event-ID": "7"}, {}, 400, "Last-Event-ID"),
        ({"Last-Event-ID": f"req_{'a' * 24}/1-x"}, {}, 400, "Last-Event-ID"),
        ({"Last-Event-ID": f"req_{'a' * 24}/{1 << 64}-0"}, {}, 400, "Last-Event-ID"),
        ({"Last-Event-ID": f"req_{'a' * 24}/1-{1 << 64}"}, {}, 400, "Last-Event-ID"),
        ({"Last-Event-ID": f"req_{'a' * 24}/1-0"}, {}, 404, "Last-Event-ID"),
        ({"X-Nightmill-Resume": "0"}, {}, 400, "X-Nightmill-Resume"),
        ({"X-Nightmill-Resume": "601"}, {}, 400, "X-Nightmill-Resume"),
        ({"X-Nightmill-Resume": "soon"}, {}, 400, "X-Nightmill-Resume"),
        ({"X-Nightmill-Resume": "30"}, {"stream": False}, 400, "X-Nightmill-Resume"),
    ],
)
def test_what_cannot_be_resumed_is_refused_and_asks_nobody(
    shop: Shop, headers: dict[str, str], body: dict[str, Any], status: int, param: str
) -> None:
    with shop.open(), pytest.raises(openai.APIStatusError) as refused:
        shop.client.post("/chat/completions", body={**_CHAT, **body}, cast_to=object, options={"headers": headers})

    assert (refused.value.status_code, refused.value.param) == (status, param)
    assert shop.asked == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "X-Nightmill-Resume"),
        ({"stream": True, "background": True}, "X-Nightmill-Resume"),
        ({"stream": True, "store": False, "conversation": "conv_x"}, "store"),
    ],
)
def test_a_response_that_cannot_be_resumed_is_refused(shop: Shop, fields: dict[str, Any], param: str) -> None:
    body = {"model": MODEL, "input": "Hello", **fields}
    with shop.open(), pytest.raises(openai.BadRequestError) as refused:
        shop.client.post("/responses", body=body, cast_to=object, options={"headers": _RESUME})

    assert refused.value.param == param
    assert shop.asked == []


def test_an_event_of_another_kind_of_stream_is_refused(shop: Shop) -> None:
    with shop.open():
        with _post(shop, _CHAT, **_RESUME) as events:
            [first] = _some(events, 1)
        with pytest.raises(openai.BadRequestError) as refused:
            shop.client.post(
                "/responses",
                body={"model": MODEL, "input": "x", "stream": True},
                cast_to=object,
                options={"headers": {"Last-Event-ID": first["id"]}},
            )

    assert refused.value.param == "Last-Event-ID"


def test_a_stream_that_was_late_can_be_come_back_to_before_its_first_event(
    make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = make_shop({"delay": 2.0})
    hurry(shop.app, first_chunk_patience=0.3)
    headers = {"Authorization": f"Bearer {shop.client.api_key}", **_RESUME}
    with shop.open():
        with httpx2.stream("POST", f"{shop.url}/chat/completions", json=_CHAT, headers=headers, timeout=30) as said:
            name = said.headers["X-Nightmill-Stream"]
            assert next(said.iter_lines()) == ": alive"
        rest = httpx2.get(f"{shop.url}/streams/{name}", headers=headers, timeout=30)

    assert rest.status_code == 200
    assert rest.text.endswith("data: [DONE]\n\n")
    assert shop.asked == ["Hello"]


@pytest.mark.parametrize("stops", [False, True])
def test_a_stream_that_is_still_in_line_can_be_come_back_to_and_stopped(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    monkeypatch.setattr(shop.engine, "stream", _slowly(shop, 0.15))
    hurry(shop.app, first_chunk_patience=0.3)
    headers = {"Authorization": f"Bearer {shop.client.api_key}", **_RESUME}
    body = {**_CHAT, "messages": [{"role": "user", "content": "Second"}]}
    with shop.open(concurrent=1), _post(shop, _CHAT) as first:
        seen = _some(first, 1)
        with httpx2.stream("POST", f"{shop.url}/chat/completions", json=body, headers=headers, timeout=30) as said:
            name = said.headers["X-Nightmill-Stream"]
            assert next(said.iter_lines()) == ": alive"
        come_back = httpx2.delete if stops else httpx2.get
        answer = come_back(f"{shop.url}/streams/{name}", headers=headers, timeout=30)
        assert answer.status_code == 200
        seen += list(first)
        again = httpx2.get(f"{shop.url}/streams/{name}", headers=headers, timeout=30)
        eventually(lambda: shop.host._in_flight == 0, 10, "the engine is free")

    assert _text(seen) == _WHOLE
    if stops:
        assert (answer.json()["stopped"], again.status_code) == (True, 404)
    else:
        assert _text(list(_events(iter(answer.text.split("\n"))))) == _WHOLE


def test_resuming_from_a_queue_without_a_worker_is_an_error(
    make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = make_shop(timings=replace(Timings(), first_chunk_patience=0.3, interactive_taken=0.3))
    headers = {"Authorization": f"Bearer {shop.client.api_key}", **_RESUME}
    shop.announce("gpu-1")  # and takes nothing
    with httpx2.stream("POST", f"{shop.url}/chat/completions", json=_CHAT, headers=headers, timeout=30) as said:
        name = said.headers["X-Nightmill-Stream"]
        assert next(said.iter_lines()) == ": alive"
    shop.leave("gpu-1")

    rest = httpx2.get(f"{shop.url}/streams/{name}", headers=headers, timeout=30)

    assert '"code":"no_worker"' in rest.text.replace(": ", ":")


def test_a_stream_that_nobody_reads_is_bounded_and_frees_the_engine(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shop.engine, "stream", _slowly(shop, 0.0))
    body = json.dumps(_CHAT).encode()
    queued = QueuedRequest("req_unread", "/v1/chat/completions", body, "tenant", now() + 60, stream=True)
    with shop.open(unread=10), redis.Redis.from_url(shop.redis_url) as server:
        server.set(interactive.client_key(queued.id), b"1", ex=30)
        server.rpush(interactive.queue_key(Queue.GENERATE), interactive.pack(queued))
        name = interactive.answer_key(queued.id)
        eventually(lambda: _last(server, name) == "end", 10, "it is given up")
        pieces = [interactive.unpack_entry(fields[interactive.ENTRY_FIELD]) for _, fields in server.xrange(name)]

    assert len(pieces) <= 10 + 3
    assert json.loads(pieces[-1].body)["error"]["code"] == "client_too_slow"
    assert shop.host._in_flight == 0


def test_read_entries_that_stay_for_resuming_do_not_count_as_unread(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("jobs.inference.client", "workers.inference.answer_writer"):
        monkeypatch.setattr(f"{module}.AT_ONCE", 4)
        monkeypatch.setattr(f"{module}.BEHIND", 16)
    with shop.open(unread=10), _post(shop, _CHAT, **_RESUME) as events:
        assert _text(list(events)) == _WHOLE


def _last(server: Any, name: str) -> str | None:
    found = server.xrevrange(name, count=1)
    return interactive.unpack_entry(found[0][1][interactive.ENTRY_FIELD]).kind if found else None


def test_read_entries_are_dropped_except_the_last_of_a_resumable_stream(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.inference.client.AT_ONCE", 4)
    monkeypatch.setattr("jobs.inference.client.BEHIND", 8)
    with shop.open(), redis.Redis.from_url(shop.redis_url) as server:
        before = set(server.keys(interactive.answer_key("req_*")))
        for headers, most in (({}, 12), (_RESUME, 20)):
            with _post(shop, _CHAT, **headers) as events:
                seen = _some(events, 30)
                [name] = set(server.keys(interactive.answer_key("req_*"))) - before
                assert server.xlen(name) <= most
            before.add(name)
        name = seen[0]["id"].partition("/")[0]
        with pytest.raises(openai.NotFoundError) as gone:
            shop.client.get(f"/streams/{name}", cast_to=object, options={"headers": {"Last-Event-ID": seen[0]["id"]}})

    assert gone.value.code == "stream_gone"


@pytest.mark.parametrize("read", [0, 2], ids=["before the first is read", "while it is read"])
async def test_resuming_behind_dropped_entries_is_an_error_and_leaves_no_gap(
    redis_url: str, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.inference.client.AT_ONCE", 2)
    name, kept = new_id("req_"), Resumable("tenant", "/v1/chat/completions", now() + 60, 30, b"")
    pieces = [AnswerEntry("taken"), *(AnswerEntry("chunk", str(n).encode()) for n in range(4)), AnswerEntry("end")]
    client = InferenceClient(Settings(streams_url=redis_url))
    async with (
        interactive.connect(redis_url) as server,
        aclosing(client.resume(name, "0-0", kept, _always, _yes)) as rest,
    ):

        async def tell(*some: AnswerEntry) -> list[bytes]:
            return [
                await server.xadd(interactive.answer_key(name), {interactive.ENTRY_FIELD: pack(one)}) for one in some
            ]

        await tell(*pieces[:read])
        seen = [await anext(rest) for _ in range(read)]
        *_, oldest, _, _ = await tell(*pieces[read:])
        await server.xtrim(interactive.answer_key(name), minid=oldest, approximate=False)  # more than AT_ONCE stay
        with pytest.raises(NotFound) as gone:
            seen += [piece async for piece in rest]
    await client.close()

    assert ([piece.kind for piece in seen], gone.value.code) == (["taken", "chunk"][:read], "stream_gone")
