"""Chat completions that are stored: the official SDK, the real API and its Redis, the consumer over a fake engine."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest
import redis
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from sqlalchemy import select

from jobs.clock import now
from jobs.inference.interactive import ENTRY_FIELD, AnswerEntry, answer_key, pack
from jobs.inference.tables import StoredCompletion
from jobs.ledger.tables import Audit
from tests.support.lost import look_twice
from tests.support.shop import MODEL, Shop
from tests.support.system import eventually
from workers.dispatcher.retention import Retention
from workers.engines.port import Answer, Emit, EngineFault, Request, refusal

_WORD = {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "a"}}]}
_END = {**_WORD, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Iterator[Shop]:
    made = make_shop()
    with made.open():
        yield made


def _create(shop: Shop, messages: Any = HELLO, **fields: Any) -> ChatCompletion:
    made = shop.client.chat.completions.create(**{"model": MODEL, "messages": messages, "store": True, **fields})
    assert isinstance(made, ChatCompletion)
    return made


def _stream(shop: Shop, messages: Any = HELLO, **fields: Any) -> Iterator[ChatCompletionChunk]:
    given = {"model": MODEL, "messages": messages, "store": True, **fields}
    return iter(shop.client.chat.completions.create(**given, stream=True))


def test_one_is_answered_and_stored_under_an_id_of_its_own(shop: Shop) -> None:
    made, again = _create(shop, metadata={"team": "blue"}), _create(shop)

    stored = shop.client.chat.completions.retrieve(made.id)
    assert stored == made
    assert stored.id.startswith("chatcmpl-")
    assert (stored.object, stored.model, stored.metadata) == ("chat.completion", MODEL, {"team": "blue"})
    assert stored.usage
    assert stored.choices[0].message.content == again.choices[0].message.content
    assert [one.id for one in shop.client.chat.completions.list(limit=1)] == [made.id, again.id]
    assert [one.id for one in shop.client.chat.completions.list(metadata={"team": "blue"})] == [made.id]
    assert [one.id for one in shop.client.chat.completions.list(order="desc", model=MODEL)] == [again.id, made.id]


def test_an_alias_is_a_name_that_it_is_found_by(shop: Shop) -> None:
    made = _create(shop, model="gpt-4o-mini")

    assert [one.id for one in shop.client.chat.completions.list(model="gpt-4o-mini")] == [made.id]


@pytest.mark.parametrize("store", [{}, {"store": False}, {"store": None}])
@pytest.mark.parametrize("stream", [False, True])
def test_unless_it_is_asked_for_nothing_is_stored(shop: Shop, store: dict[str, Any], stream: bool) -> None:
    said = shop.post(
        "chat/completions", {"model": MODEL, "messages": HELLO, "stream": stream, "metadata": {"team": "blue"}, **store}
    )

    assert said.status_code == 200
    assert (shop.objects("completions"), list(shop.client.chat.completions.list())) == ([], [])


def test_the_engine_is_not_told_to_keep_it(make_shop: Callable[..., Shop]) -> None:
    told: list[dict[str, Any]] = []
    shop = make_shop(engine={"fault": lambda request: told.append(request.body)})
    with shop.open():
        _create(shop, metadata={"team": "blue"}, temperature=0.5)
        list(_stream(shop, metadata={"team": "blue"}))

    assert told[0] == {"model": MODEL, "messages": HELLO, "temperature": 0.5}
    assert told[1].keys() == {"model", "messages", "stream", "stream_options"}


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_says_the_same_and_is_stored_whole_before_its_end(shop: Shop, usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    whole = _create(shop)

    chunks = list(_stream(shop, metadata={"team": "red"}, n=2, **options))

    stored = shop.client.chat.completions.retrieve(chunks[0].id)
    assert {chunk.id for chunk in chunks} == {stored.id}
    assert [choice.message.content for choice in stored.choices] == [whole.choices[0].message.content] * 2
    for choice in stored.choices:
        deltas = [one.delta.content or "" for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(deltas) == choice.message.content
    assert [choice.finish_reason for choice in stored.choices] == ["stop"] * 2
    assert (stored.metadata, stored.model, stored.created) == ({"team": "red"}, MODEL, whole.created)
    assert stored.usage == whole.usage
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [usage]
    assert all(chunk.choices for chunk in chunks[:-1])


def test_the_end_of_a_stream_is_told_once_it_is_stored(shop: Shop) -> None:
    body = {"model": MODEL, "messages": HELLO, "store": True, "stream": True}
    headers = {"Authorization": f"Bearer {shop.client.api_key}"}
    stored = []
    with httpx2.stream("POST", f"{shop.url}/chat/completions", json=body, headers=headers, timeout=30) as said:
        for line in said.iter_lines():
            if line == "data: [DONE]":
                stored = list(shop.client.chat.completions.list())
            elif line.startswith("data:"):
                assert "usage" not in json.loads(line.removeprefix("data:"))

    assert len(stored) == 1


def test_its_messages_come_in_pages(shop: Shop) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = [
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "ok", "tool_call_id": "call_1"},
    ]
    made = _create(shop, asked)

    messages = list(shop.client.chat.completions.messages.list(made.id, limit=1))

    assert [message.id for message in messages] == [f"{made.id}-{n}" for n in range(3)]
    assert [message.role for message in messages] == ["user", "assistant", "tool"]  # type: ignore[comparison-overlap]
    assert [message.content for message in messages] == [None, None, "ok"]
    assert [message.to_dict()["content_parts"] for message in messages] == [parts, None, None]
    assert messages[1].tool_calls
    backwards = shop.client.chat.completions.messages.list(made.id, order="desc", limit=2).data
    assert backwards == [messages[2], messages[1]]
    with pytest.raises(openai.BadRequestError, match="No object with id"):
        shop.client.chat.completions.messages.list(made.id, after="chatcmpl-none")


def test_metadata_is_updated_and_the_chat_deleted(shop: Shop) -> None:
    made = _create(shop, metadata={"team": "blue"})

    changed = shop.client.chat.completions.update(made.id, metadata={"team": "red"})
    assert changed == made.model_copy(update={"metadata": {"team": "red"}})
    assert shop.client.chat.completions.retrieve(made.id) == changed
    assert shop.client.chat.completions.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        shop.client.chat.completions.retrieve(made.id)
    assert shop.objects("completions") == []
    with shop.app.state.services.db.read() as session:
        actions = session.scalars(select(Audit.action).where(Audit.target == made.id).order_by(Audit.id)).all()
    assert actions == [f"chat_completion.{what}" for what in ("create", "update", "delete")]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"k" * 65: "x"}}, "metadata." + "k" * 65),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"store": "yes"}, "store"),
        ({"cache": True, "temperature": 0}, "cache"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_asked(shop: Shop, fields: dict[str, Any], param: str) -> None:
    said = shop.post("chat/completions", {"model": MODEL, "messages": HELLO, "store": True, **fields})

    assert (said.status_code, said.json()["error"]["param"]) == (400, param)
    assert (shop.asked, shop.objects("completions")) == ([], [])


@pytest.fixture
def slow(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Make the engine take a fifth of a second for each chunk."""
    stream = shop.engine.stream

    async def slowly(request: Request, emit: Emit) -> Answer:
        async def one(chunk: bytes) -> None:
            await emit(chunk)
            await asyncio.sleep(0.2)

        return await stream(request, one)

    monkeypatch.setattr(shop.engine, "stream", slowly)
    return shop


@contextmanager
def _resumable(shop: Shop, **headers: str) -> Iterator[Iterator[tuple[str, Any]]]:
    """Return the ids of a stream's events, and their content."""
    body = {"model": MODEL, "messages": HELLO, "store": True, "stream": True}
    given = {"Authorization": f"Bearer {shop.client.api_key}", **(headers or {"X-Nightmill-Resume": "30"})}
    with httpx2.stream("POST", f"{shop.url}/chat/completions", json=body, headers=given, timeout=30) as said:
        assert said.status_code == 200, said.read()
        yield _told(said.iter_lines())


def _told(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    at = ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "id":
            at = value
        elif name == "data":
            yield at, value if value == "[DONE]" else json.loads(value)


def _text(events: list[tuple[str, Any]]) -> str:
    return "".join(one["delta"].get("content", "") for _, said in events if said != "[DONE]" for one in said["choices"])


def test_a_stream_that_is_come_back_to_is_stored_whole(slow: Shop) -> None:
    with _resumable(slow) as events:
        seen = [next(events)]
    assert slow.objects("completions") == []

    with _resumable(slow, **{"Last-Event-ID": seen[-1][0]}) as events:
        seen += list(events)

    [stored] = slow.client.chat.completions.list()
    assert seen[-1][1] == "[DONE]"
    assert len({at for at, _ in seen}) == len(seen)
    assert {said["id"] for _, said in seen[:-1]} == {stored.id}
    assert _text(seen) == stored.choices[0].message.content
    assert stored.usage


def test_a_stream_that_is_shown_again_is_stored_once_and_not_after_it_was_deleted(shop: Shop) -> None:
    with _resumable(shop) as events:
        seen = list(events)
    [stored] = shop.client.chat.completions.list()
    url = f"{shop.url}/streams/{seen[0][0].partition('/')[0]}"
    key = {"Authorization": f"Bearer {shop.client.api_key}"}

    again = list(_told(iter(httpx2.get(url, headers=key).text.split("\n"))))
    with _resumable(shop, **{"Last-Event-ID": seen[-1][0]}) as events:
        behind = list(events)
    assert (again, behind) == (seen, [])
    assert list(shop.client.chat.completions.list()) == [stored]
    shop.client.chat.completions.delete(stored.id)
    assert list(_told(iter(httpx2.get(url, headers=key).text.split("\n")))) == seen

    assert (list(shop.client.chat.completions.list()), shop.objects("completions")) == ([], [])
    with shop.app.state.services.db.read() as session:
        actions = session.scalars(select(Audit.action).where(Audit.target == stored.id).order_by(Audit.id)).all()
    assert actions == ["chat_completion.create", "chat_completion.delete"]


def test_stored_chat_is_not_written_again_when_its_stream_is_shown_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _resumable(shop) as events:
        seen = list(events)
    written: list[str] = []
    monkeypatch.setattr(shop.app.state.services.storage, "put", lambda path, _: written.append(path))

    with _resumable(shop, **{"Last-Event-ID": seen[0][0]}) as events:
        again = list(events)

    assert (again, written) == (seen[1:], [])


@pytest.mark.parametrize("deleted", [False, True])
def test_two_writers_of_one_stream_leave_one_object_that_the_row_names(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    storage, key = shop.app.state.services.storage, {"Authorization": f"Bearer {shop.client.api_key}"}
    put, objects, go_on = storage.put, [], threading.Event()

    async def stream(request: Request, emit: Emit) -> Answer:
        await emit(json.dumps(_WORD).encode())
        await asyncio.to_thread(go_on.wait, 20)
        await emit(json.dumps(_END).encode())
        return Answer(200, b"")

    def second(path: str, data: bytes) -> None:
        """Let the first writer read; before it writes, let another one do all of its work."""
        monkeypatch.setattr(storage, "put", lambda path, data: objects.append(data) or put(path, data))
        httpx2.get(f"{shop.url}/streams/{name}", headers=key, timeout=30)
        if deleted:
            [stored] = shop.client.chat.completions.list()
            shop.client.chat.completions.delete(stored.id)
        objects.append(data)
        put(path, data)

    monkeypatch.setattr(shop.engine, "stream", stream)
    with _resumable(shop) as events:
        seen = [next(events)]
        name = seen[0][0].partition("/")[0]
        monkeypatch.setattr(storage, "put", second)
        go_on.set()
        seen += list(events)

    assert seen[-1][1] == "[DONE]"
    assert json.loads(objects[0]) == json.loads(objects[1])
    found = list(shop.client.chat.completions.list())
    assert len(found) == len(shop.objects("completions")) == (0 if deleted else 1)


def test_stream_with_a_dropped_unread_chunk_is_an_error_and_is_not_stored(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another reader does, who is further on."""
    go_on = threading.Event()

    async def stream(request: Request, emit: Emit) -> Answer:
        await emit(json.dumps(_WORD).encode())
        await asyncio.to_thread(go_on.wait, 20)
        await emit(json.dumps(_END).encode())
        return Answer(200, b"")

    monkeypatch.setattr("jobs.inference.client.AT_ONCE", 1)  # whoever drops leaves more than that
    monkeypatch.setattr(shop.engine, "stream", stream)
    with _resumable(shop) as events, redis.Redis.from_url(shop.redis_url) as server, server.pipeline() as pipe:
        seen = [next(events)]
        name = answer_key(seen[0][0].partition("/")[0])
        pipe.xadd(name, {ENTRY_FIELD: pack(AnswerEntry("chunk", json.dumps(_WORD).encode()))})
        pipe.xtrim(name, maxlen=0, approximate=False)
        pipe.execute()
        go_on.set()
        seen += list(events)

    assert [said.get("error", {}).get("code") for _, said in seen] == [None, "stream_gone"]
    assert (list(shop.client.chat.completions.list()), shop.objects("completions")) == ([], [])


def test_stream_whose_beginning_was_dropped_cannot_be_resumed(slow: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.inference.client.BEHIND", 0)
    monkeypatch.setattr("jobs.inference.client.AT_ONCE", 1)
    with _resumable(slow) as events:
        seen = [next(events), next(events)]

    gone = slow.post(
        "chat/completions", {"model": MODEL, "messages": HELLO, "store": True}, **{"Last-Event-ID": seen[-1][0]}
    )

    assert (gone.status_code, gone.json()["error"]["code"], slow.objects("completions")) == (404, "stream_gone", [])


def test_only_a_stream_can_be_come_back_to(shop: Shop) -> None:
    said = shop.post(
        "chat/completions", {"model": MODEL, "messages": HELLO, "store": True}, **{"X-Nightmill-Resume": "30"}
    )

    assert (said.status_code, said.json()["error"]["param"], shop.asked) == (400, "X-Nightmill-Resume", [])


def test_on_a_full_disk_only_what_is_not_stored_is_answered(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(min_free_bytes=1 << 60)
    with shop.open():
        with pytest.raises(openai.APIStatusError) as full:
            _create(shop)
        assert shop.asked == []
        assert _create(shop, store=False).choices

    assert (full.value.status_code, full.value.code) == (507, "insufficient_storage")


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_passed_on_and_stores_nothing(make_shop: Callable[..., Shop], stream: bool) -> None:
    shop = make_shop(engine={"fault": lambda _: refusal(400, "Too long.", code="context_length_exceeded")})
    with shop.open(), pytest.raises(openai.BadRequestError) as refused:
        list(_stream(shop)) if stream else _create(shop)

    assert (refused.value.code, shop.objects("completions")) == ("context_length_exceeded", [])


@pytest.mark.parametrize(
    "answer", [b'{"error": null}', b'{"choices": []}', b'{"choices": [{}]}', b'{"choices": ["x"]}', b"[]"]
)
def test_an_answer_that_is_no_completion_is_an_error_and_is_not_stored(
    make_shop: Callable[..., Shop], answer: bytes
) -> None:
    shop = make_shop(engine={"fault": lambda _: Answer(200, answer)})
    with shop.open(), pytest.raises(openai.InternalServerError) as broken:
        _create(shop)

    assert (broken.value.code, shop.objects("completions")) == ("engine_error", [])


def _telling(shop: Shop, monkeypatch: pytest.MonkeyPatch, *chunks: Any) -> None:
    """Make the engine send these events, and end well."""

    async def stream(request: Request, emit: Emit) -> Answer:
        for chunk in chunks:
            await emit(json.dumps(chunk).encode())
        return Answer(200, b"")

    monkeypatch.setattr(shop.engine, "stream", stream)


@pytest.mark.parametrize(
    "chunks",
    [[_WORD], [_WORD, {"error": {"message": "It broke.", "code": "engine_error"}}], [_WORD, 3]],
    ids=["it just stops", "it tells an error", "no chunk"],
)
def test_a_stream_without_an_end_is_an_error_and_is_not_stored(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, chunks: list[Any]
) -> None:
    _telling(shop, monkeypatch, *chunks)

    with pytest.raises(openai.APIError) as broken:
        list(_stream(shop))

    assert (broken.value.code, shop.objects("completions")) == ("engine_error", [])


def test_a_stream_that_breaks_is_an_error_and_is_not_stored(shop: Shop) -> None:
    with pytest.raises(openai.APIError):
        list(_stream(shop, [{"role": "user", "content": "!cut here"}]))

    assert shop.objects("completions") == []


def test_client_that_leaves_a_stream_leaves_nothing_behind(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stream(request: Request, emit: Emit) -> Answer:
        await emit(json.dumps(_WORD).encode())
        await asyncio.sleep(20)
        return Answer(200, b"")

    monkeypatch.setattr(shop.engine, "stream", stream)
    with shop.client.chat.completions.create(model=MODEL, messages=HELLO, store=True, stream=True) as stream:
        next(iter(stream))
    eventually(lambda: shop.host._in_flight == 0, 10, "the engine is free")

    assert list(shop.client.chat.completions.list()) == []
    assert shop.objects("completions") == []


def test_one_key_asks_once(shop: Shop) -> None:
    body = {"model": MODEL, "messages": HELLO, "store": True}
    first, second = (shop.post("chat/completions", body, **{"Idempotency-Key": "k"}) for _ in range(2))
    other = shop.post("chat/completions", {**body, "temperature": 1}, **{"Idempotency-Key": "k"})

    assert first.json() == second.json()
    assert (second.headers.get("Idempotency-Replayed"), other.status_code) == ("true", 422)
    assert (len(shop.asked), len(shop.objects("completions"))) == (1, 1)


def test_a_key_means_nothing_where_nothing_is_stored_but_is_to_be_one(shop: Shop) -> None:
    body = {"model": MODEL, "messages": HELLO}
    said = [shop.post("chat/completions", body, **{"Idempotency-Key": key}) for key in ("k", "k", "k" * 256)]

    assert [answer.status_code for answer in said] == [200, 200, 400]
    assert (said[1].headers.get("Idempotency-Replayed"), len(shop.asked)) == (None, 2)
    error = said[2].json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "Idempotency-Key")


def test_a_key_whose_request_failed_is_free_again(make_shop: Callable[..., Shop]) -> None:
    broken: list[Request] = []

    def once(request: Request) -> EngineFault | None:
        broken.append(request)
        return EngineFault("it broke") if len(broken) == 1 else None

    shop = make_shop(engine={"fault": once})
    body = {"model": MODEL, "messages": HELLO, "store": True}
    with shop.open():
        said = [shop.post("chat/completions", body, **{"Idempotency-Key": "k"}) for _ in range(2)]

    assert [answer.status_code for answer in said] == [500, 200]


def test_another_project_sees_nothing_of_it(shop: Shop) -> None:
    made = _create(shop)
    theirs = shop.stranger().chat.completions

    assert list(theirs.list()) == []
    for call in (theirs.retrieve, theirs.delete, theirs.messages.list):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    assert shop.client.chat.completions.retrieve(made.id) == made


def test_what_has_expired_is_gone_with_its_bytes_and_orphans_too(shop: Shop) -> None:
    made, kept = _create(shop), _create(shop)
    services = shop.app.state.services
    services.storage.put("completions/chatcmpl-orphan", b"{}")  # as a crash before the row leaves one
    with services.db.write() as session:
        session.get_one(StoredCompletion, made.id).expires_at = now() - 1

    with pytest.raises(openai.NotFoundError):
        shop.client.chat.completions.retrieve(made.id)
    retention = Retention(services.config, services.db, services.storage)
    retention.run()
    assert shop.objects("completions") == sorted(["completions/chatcmpl-orphan", f"completions/{kept.id}"])
    look_twice(services.config, services.db, services.storage)
    assert shop.objects("completions") == [f"completions/{kept.id}"]
