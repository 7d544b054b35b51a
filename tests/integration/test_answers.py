"""Stored answers, chat completions and responses alike: what is stored, listed, continued, repeated and deleted."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, groupby
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseErrorEvent
from sqlalchemy import select

from jobs.clock import now
from jobs.inference.tables import StoredCompletion, StoredResponse
from jobs.ledger.tables import Audit
from tests.support.cited_responses import RESULTS, TEXT, TOOL, citing, found, searching
from tests.support.interactive_api import CHAT, MODEL, RESPONSE, STORED_CHAT, Endpoint, Shop, endpoints, text_of
from tests.support.orphan_files import look_twice
from tests.support.system import eventually
from workers.dispatcher.retention import Retention
from workers.engines.port import Answer, Emit, EngineFault, Request, refusal

SYSTEM: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
WORD = {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "a"}}]}
KEY = {"Idempotency-Key": "k"}

both = endpoints(STORED_CHAT, RESPONSE)
whole_or_stream = pytest.mark.parametrize("stream", [False, True])


def _ask(shop: Shop, endpoint: Endpoint, headers: dict[str, str] | None = None, **fields: Any) -> httpx2.Response:
    return shop.post(endpoint.path, {**endpoint.body, **fields}, **(headers or {}))


def _create(shop: Shop, endpoint: Endpoint, **fields: Any) -> dict[str, Any]:
    answer = _ask(shop, endpoint, **fields)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def _respond(shop: Shop, said: Any = "Hello", **fields: Any) -> Response:
    response = shop.client.responses.create(model=MODEL, input=said, **fields)
    assert isinstance(response, Response)
    return response


def _complete(shop: Shop, messages: Any = SYSTEM, **fields: Any) -> ChatCompletion:
    made = shop.client.chat.completions.create(**{"model": MODEL, "messages": messages, "store": True, **fields})
    assert isinstance(made, ChatCompletion)
    return made


def _chunks(shop: Shop, **fields: Any) -> Iterator[ChatCompletionChunk]:
    given = {"model": MODEL, "messages": SYSTEM, "store": True, **fields}
    return iter(shop.client.chat.completions.create(**given, stream=True))


def _audits(shop: Shop, name: str) -> list[str]:
    with shop.app.state.services.db.read() as session:
        return list(session.scalars(select(Audit.action).where(Audit.target == name).order_by(Audit.id)))


def _is_found(shop: Shop, endpoint: Endpoint, name: str) -> bool:
    try:
        shop.client.get(f"/{endpoint.path}/{name}", cast_to=object)
    except openai.NotFoundError:
        return False
    return True


@both
def test_answer_is_stored_and_listed_under_an_id_of_its_own(shop: Shop, endpoint: Endpoint) -> None:
    blue, other = _create(shop, endpoint, metadata={"team": "blue"}), _create(shop, endpoint, model="gpt-4o-mini")
    _create(shop, endpoint, store=False)

    def listed(query: str) -> list[dict[str, Any]]:
        return list(endpoint.stored_answers(shop.client, query).values())

    assert shop.client.get(f"/{endpoint.path}/{blue['id']}", cast_to=object) == blue
    assert (blue["metadata"], text_of(blue)) == ({"team": "blue"}, text_of(other))
    assert blue["usage"]["total_tokens"] > 0
    assert listed("?order=desc") == [other, blue]
    assert listed("") == ([blue, other] if endpoint is STORED_CHAT else [other, blue])
    assert listed("?order=asc&limit=1") == listed("?metadata[team]=blue") == [blue]
    assert (listed("?model=gpt-4o-mini"), listed("?model=another")) == ([other], [])
    assert shop.asked == ["Hello"] * 3


@both
def test_list_continues_behind_a_deleted_answer(shop: Shop, endpoint: Endpoint) -> None:
    first, second = _create(shop, endpoint), _create(shop, endpoint)
    shop.client.delete(f"/{endpoint.path}/{second['id']}", cast_to=object)

    assert list(endpoint.stored_answers(shop.client, f"?order=desc&after={second['id']}")) == [first["id"]]
    with pytest.raises(openai.BadRequestError, match="No object with id 'x_none'"):
        endpoint.stored_answers(shop.client, "?after=x_none")


@whole_or_stream
@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [(CHAT, {}), (CHAT, {"store": False}), (CHAT, {"store": None}), (RESPONSE, {"store": False})],
)
def test_answer_that_is_not_to_be_stored_is_not(
    shop: Shop, endpoint: Endpoint, fields: dict[str, Any], stream: bool
) -> None:
    answer = _ask(shop, endpoint, stream=stream, metadata={"team": "blue"}, **fields)

    assert answer.status_code == 200
    assert (shop.objects("completions"), shop.objects("responses"), endpoint.stored_answers(shop.client)) == (
        [],
        [],
        {},
    )


@both
def test_stream_says_the_same_and_is_stored_before_its_last_event(shop: Shop, endpoint: Endpoint) -> None:
    whole, lasts, stored = _create(shop, endpoint), ("data: [DONE]", "event: response.completed"), list[str]()
    headers = {"Authorization": f"Bearer {shop.client.api_key}"}
    asked = {"json": {**endpoint.body, "stream": True}, "headers": headers, "timeout": 30}
    with httpx2.stream("POST", f"{shop.url}/{endpoint.path}", **asked) as answer:  # type: ignore[arg-type]
        lines = []
        for line in answer.iter_lines():
            lines.append(line)
            if line in lasts:
                stored = [text_of(one) for one in endpoint.stored_answers(shop.client).values()]

    assert stored == [text_of(whole)] * 2
    assert answer.headers["content-type"].startswith("text/event-stream")
    if endpoint is STORED_CHAT:
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        assert not any("usage" in chunk for chunk in chunks)
        return
    blocks = [block.split("\n") for block in "\n".join(lines).strip().split("\n\n")]
    assert all(name == f"event: {json.loads(data.removeprefix('data: '))['type']}" for name, data in blocks)
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == text_of(whole)
    last = events[-1]["response"]
    assert events[0]["response"]["id"] == last["id"]
    assert endpoint.stored_answers(shop.client)[last["id"]] == last


@pytest.mark.parametrize("usage", [False, True])
def test_stored_stream_of_several_choices_has_their_texts_and_usage(shop: Shop, usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    whole = _complete(shop)

    chunks = list(_chunks(shop, metadata={"team": "red"}, n=2, **options))

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


def test_store_field_is_not_sent_to_engine(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(shop.engine, "_fault", lambda request: asked.append(request.body))
    _complete(shop, metadata={"team": "blue"}, temperature=0.5)
    list(_chunks(shop, metadata={"team": "blue"}))

    assert asked[0] == {"model": MODEL, "messages": SYSTEM, "temperature": 0.5}
    assert asked[1].keys() == {"model", "messages", "stream", "stream_options"}


def test_messages_of_a_chat_come_in_pages(shop: Shop) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    made = _complete(
        shop,
        [
            {"role": "user", "content": parts, "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "ok", "tool_call_id": "call_1"},
        ],
    )
    list_messages = shop.client.chat.completions.messages.list

    messages = list(list_messages(made.id, limit=1))

    assert [message.id for message in messages] == [f"{made.id}-{n}" for n in range(3)]
    assert [message.role for message in messages] == ["user", "assistant", "tool"]  # type: ignore[comparison-overlap]
    assert [message.content for message in messages] == [None, None, "ok"]
    assert [message.to_dict()["content_parts"] for message in messages] == [parts, None, None]
    assert messages[1].tool_calls
    assert list_messages(made.id, order="desc", limit=2).data == [messages[2], messages[1]]
    with pytest.raises(openai.BadRequestError, match="No object with id"):
        list_messages(made.id, after="chatcmpl-none")


def test_metadata_of_a_chat_is_updated(shop: Shop) -> None:
    made = _complete(shop, metadata={"team": "blue"})

    changed = shop.client.chat.completions.update(made.id, metadata={"team": "red"})

    assert changed == made.model_copy(update={"metadata": {"team": "red"}})
    assert shop.client.chat.completions.retrieve(made.id) == changed
    assert _audits(shop, made.id) == ["chat_completion.create", "chat_completion.update"]


@both
def test_deletion_removes_answer_and_bytes_and_returns_receipt(shop: Shop, endpoint: Endpoint) -> None:
    name = _create(shop, endpoint)["id"]
    url = f"/{endpoint.path}/{name}"

    deleted: Any = shop.client.delete(url, cast_to=object)

    assert deleted["deleted"]
    assert (_is_found(shop, endpoint, name), shop.objects(endpoint.folder)) == (False, [])
    gone: list[Callable[[], object]] = [lambda: shop.client.delete(url, cast_to=object)]
    gone += [lambda: shop.client.post(f"{url}/cancel", cast_to=object)] if endpoint is RESPONSE else []
    for call in gone:
        with pytest.raises(openai.NotFoundError):
            call()
    assert [action.partition(".")[2] for action in _audits(shop, name)] == ["create", "delete"]


@pytest.mark.parametrize(
    ("endpoint", "fields", "param", "code"),
    [
        (STORED_CHAT, {"metadata": {"a": 1}}, "metadata.a", None),
        (STORED_CHAT, {"metadata": {"k" * 65: "x"}}, "metadata." + "k" * 65, None),
        (STORED_CHAT, {"metadata": {str(n): "x" for n in range(17)}}, "metadata", None),
        (STORED_CHAT, {"store": "yes"}, "store", None),
        (STORED_CHAT, {"cache": True, "temperature": 0}, "cache", None),
        (RESPONSE, {"previous_response_id": "resp_none"}, "previous_response_id", "previous_response_not_found"),
        (RESPONSE, {"background": True, "store": False}, "store", "unsupported_value"),
        (RESPONSE, {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input", None),
        (RESPONSE, {"input": [{"type": 3, "role": "user", "content": "x"}]}, "input[0]", None),
        (RESPONSE, {"input": None}, "input", "missing_required_parameter"),
    ],
)
def test_invalid_field_is_refused_before_engine_call(
    shop: Shop, endpoint: Endpoint, fields: dict[str, Any], param: str, code: str | None
) -> None:
    answer = _ask(shop, endpoint, **fields)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert code in (None, error["code"])
    assert "call_id" not in str(fields) or "No tool call found" in error["message"]
    assert (shop.asked, shop.objects(endpoint.folder)) == ([], [])


@both
def test_full_disk_refuses_only_stored_answers(make_shop: Callable[..., Shop], endpoint: Endpoint) -> None:
    shop = make_shop(min_free_bytes=1 << 60)
    with shop.open():
        full = _ask(shop, endpoint)
        assert shop.asked == []
        assert text_of(_create(shop, endpoint, store=False))

    assert (full.status_code, full.json()["error"]["code"]) == (507, "insufficient_storage")


@whole_or_stream
@endpoints(CHAT, STORED_CHAT, RESPONSE)
def test_refusal_is_passed_on_and_nothing_stored(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, stream: bool
) -> None:
    monkeypatch.setattr(shop.engine, "_fault", lambda _: refusal(400, "Too long.", code="context_length_exceeded"))

    refused = _ask(shop, endpoint, stream=stream)

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert (shop.objects("completions"), shop.objects("responses")) == ([], [])


@pytest.mark.parametrize(
    ("endpoint", "stream", "bodies"),
    [
        (STORED_CHAT, False, [b'{"error": null}', b'{"choices": []}', b'{"choices": [{}]}', b'{"choices": ["x"]}']),
        (RESPONSE, False, [b'{"error": null}', b'{"output": null}', b'{"output": ["x"]}']),
        (RESPONSE, True, [b'{"error": null}', b'{"output": null}', b'{"output": ["x"]}']),
    ],
)
def test_answer_of_another_shape_is_an_error_and_not_stored(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, stream: bool, bodies: list[bytes]
) -> None:
    for body in [*bodies, b"[]"]:
        monkeypatch.setattr(shop.engine, "_fault", lambda _, body=body: Answer(200, body))

        broken = _ask(shop, endpoint, stream=stream)

        assert (broken.status_code, broken.json()["error"]["code"]) == (500, "engine_error"), body
        assert shop.objects(endpoint.folder) == []


@pytest.mark.parametrize(
    "chunks",
    [[WORD], [WORD, {"error": {"message": "It broke.", "code": "engine_error"}}], [WORD, 3]],
    ids=["it just stops", "it tells an error", "no chunk"],
)
def test_chat_stream_without_an_end_is_an_error_and_not_stored(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, chunks: list[Any]
) -> None:
    async def stream(_: Request, emit: Emit) -> Answer:
        for chunk in chunks:
            await emit(json.dumps(chunk).encode())
        return Answer(200, b"")

    monkeypatch.setattr(shop.engine, "stream", stream)

    with pytest.raises(openai.APIError) as broken:
        list(_chunks(shop))

    assert (broken.value.code, shop.objects("completions")) == ("engine_error", [])


def test_stream_that_breaks_is_an_error_and_not_stored(shop: Shop) -> None:
    with pytest.raises(openai.APIError):
        list(_chunks(shop, messages=[{"role": "user", "content": "!cut here"}]))
    events = list(shop.client.responses.create(model=MODEL, input="!cut here", stream=True))

    assert isinstance(events[-1], ResponseErrorEvent)
    assert events[-1].code == "engine_error"
    assert (shop.objects("completions"), shop.objects("responses")) == ([], [])


@both
def test_requests_with_same_idempotency_key_are_answered_once(shop: Shop, endpoint: Endpoint) -> None:
    first, second = (_ask(shop, endpoint, KEY) for _ in range(2))
    other = _ask(shop, endpoint, KEY, temperature=1)

    assert first.json() == second.json()
    assert (second.headers.get("Idempotency-Replayed"), other.status_code) == ("true", 422)
    assert (shop.asked, len(shop.objects(endpoint.folder))) == (["Hello"], 1)


def test_key_of_a_request_that_stores_nothing_is_ignored_but_checked(shop: Shop) -> None:
    answers = [_ask(shop, CHAT, {"Idempotency-Key": key}) for key in ("k", "k", "k" * 256)]

    assert [answer.status_code for answer in answers] == [200, 200, 400]
    assert (answers[1].headers.get("Idempotency-Replayed"), len(shop.asked)) == (None, 2)
    error = answers[2].json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "Idempotency-Key")


@both
def test_key_of_a_request_that_failed_is_free(shop: Shop, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint) -> None:
    requests = count()
    monkeypatch.setattr(shop.engine, "_fault", lambda _: None if next(requests) else EngineFault("it broke"))

    assert [_ask(shop, endpoint, KEY).status_code for _ in range(2)] == [500, 200]


@both
def test_idempotency_key_in_progress_returns_retry_after(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint
) -> None:
    monkeypatch.setattr(shop.engine, "_delay", 1.5)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_ask, shop, endpoint, KEY)
        eventually(lambda: shop.host._in_flight == 1, 10, "the first is being answered")
        second = _ask(shop, endpoint, KEY)
        answer = first.result()
    third = _ask(shop, endpoint, KEY)

    assert (second.status_code, second.json()["error"]["code"]) == (409, "idempotency_key_in_use")
    assert (second.headers["x-should-retry"], second.headers["Retry-After"]) == ("true", "1")
    assert (answer.status_code, third.headers["Idempotency-Replayed"], third.json()) == (200, "true", answer.json())
    assert shop.asked == ["Hello"]


@both
def test_another_project_sees_no_answer(shop: Shop, endpoint: Endpoint) -> None:
    name, theirs = _create(shop, endpoint)["id"], shop.stranger()
    url = f"/{endpoint.path}/{name}"

    assert endpoint.stored_answers(theirs) == {}
    inside = "messages" if endpoint is STORED_CHAT else "input_items"
    for method, path in (("get", url), ("delete", url), ("get", f"{url}/{inside}")):
        with pytest.raises(openai.NotFoundError):
            getattr(theirs, method)(path, cast_to=object)
    if endpoint is RESPONSE:
        with pytest.raises(openai.BadRequestError):
            theirs.responses.create(model=MODEL, input="go on", previous_response_id=name)
    assert _is_found(shop, endpoint, name)


@both
def test_retention_removes_expired_answers_and_orphaned_bytes(shop: Shop, endpoint: Endpoint) -> None:
    expired, stored = (_create(shop, endpoint)["id"] for _ in range(2))
    services, folder = shop.app.state.services, endpoint.folder
    orphan = f"{folder}/{stored.replace(stored[-4:], 'none')}"  # as a crash before the row leaves one
    services.storage.put(orphan, b"{}")
    with services.db.write() as session:
        row = session.get_one(StoredCompletion if endpoint is STORED_CHAT else StoredResponse, expired)
        row.expires_at = now() - 1

    assert not _is_found(shop, endpoint, expired)
    Retention(services.config, services.db, services.storage).run()
    assert shop.objects(folder) == sorted([orphan, f"{folder}/{stored}"])
    look_twice(services.config, services.db, services.storage)
    assert shop.objects(folder) == [f"{folder}/{stored}"]


def test_response_is_continued_from_any_of_its_turns(shop: Shop) -> None:
    first = _respond(shop, "one", instructions="Be brief.")
    second = _respond(shop, "two", previous_response_id=first.id)
    shop.client.responses.delete(first.id)

    third = _respond(shop, [{"role": "user", "content": "three"}], previous_response_id=second.id)

    assert (first.object, first.status, first.model, first.previous_response_id) == (
        "response",
        "completed",
        MODEL,
        None,
    )
    assert first.id.startswith("resp_")
    assert third.previous_response_id == second.id
    answers = [first.output_text, second.output_text]
    assert shop.asked[-1].split("\n") == ["one", answers[0], "two", answers[1], "three"]
    items = list(shop.client.responses.input_items.list(third.id, order="asc"))
    assert [item.role for item in items] == ["user", "assistant", "user", "assistant", "user"]  # type: ignore[union-attr]
    assert [item.content[0].text for item in items] == shop.asked[-1].split("\n")  # type: ignore[union-attr,index]


def test_input_items_come_in_pages(shop: Shop) -> None:
    sparse = {"id": None, "type": None, "role": "user", "content": "line 0", "status": "completed"}
    made = _respond(shop, [sparse, *({"role": "user", "content": f"line {n}"} for n in range(1, 5))])

    items = list(shop.client.responses.input_items.list(made.id, limit=2))

    assert [item.content[0].text for item in items] == [f"line {n}" for n in (4, 3, 2, 1, 0)]  # type: ignore[union-attr,index]
    assert all(item.id for item in items)
    with pytest.raises(openai.BadRequestError, match="No object with id 'msg_none'"):
        shop.client.responses.input_items.list(made.id, after="msg_none")


@pytest.mark.parametrize("background", [False, True])
def test_unknown_role_is_refused_with_the_known_ones(shop: Shop, background: bool) -> None:
    items = [{"role": "user", "content": "x"}, {"role": "wizard", "content": "x"}]

    answer = _ask(shop, RESPONSE, input=items, background=background)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], shop.asked) == (400, "input[1]", [])
    assert "'wizard'. Supported roles are: user, assistant, system, developer." in error["message"]


def test_earlier_turns_suffice_as_input(shop: Shop) -> None:
    """In any of the ways a response is asked for."""
    first = _respond(shop, "one")
    conversation = shop.client.conversations.create(items=[{"role": "user", "content": "one"}])

    after = shop.client.responses.create(model=MODEL, previous_response_id=first.id)
    events = list(shop.client.responses.create(model=MODEL, conversation=conversation.id, stream=True))
    queued = shop.client.responses.create(model=MODEL, previous_response_id=first.id, background=True)

    assert (after.status, events[-1].type, queued.status) == ("completed", "response.completed", "queued")
    assert shop.asked[1:3] == [f"one\n{first.output_text}", "one"]
    assert len(list(shop.client.responses.input_items.list(queued.id))) == 2
    assert [item.role for item in shop.client.conversations.items.list(conversation.id)] == ["assistant", "user"]  # type: ignore[union-attr]


@pytest.mark.parametrize("is_empty", [False, True])
def test_response_without_earlier_turns_requires_an_input(shop: Shop, is_empty: bool) -> None:
    talk = {"conversation": shop.client.conversations.create().id} if is_empty else {}

    answer = shop.post("responses", {"model": MODEL, **talk})

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "input", "missing_required_parameter")
    assert shop.asked == []


def test_foreground_response_is_streamed_repeatedly_but_not_cancelled(shop: Shop) -> None:
    made = _respond(shop)

    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        shop.client.responses.cancel(made.id)
    again = list(shop.client.responses.retrieve(made.id, stream=True))
    assert again[-1].response == made  # type: ignore[union-attr]


@pytest.fixture
def library(make_shop: Callable[..., Shop]) -> Iterator[Shop]:
    made = make_shop({"fault": citing}, searching)
    with made.open():
        yield made


@whole_or_stream
def test_search_results_are_stored_and_shown_on_request(library: Shop, stream: bool) -> None:
    shown = []
    for include in (None, RESULTS):
        if not stream:
            shown.append(_respond(library, tools=[TOOL], include=include))
            continue
        events = list(
            library.client.responses.create(model=MODEL, input="Cats?", tools=[TOOL], include=include, stream=True)
        )
        shown.append(events[-1].response)
        [item] = [event.item for event in events
                  if event.type == "response.output_item.done" and event.item.type == "file_search_call"]  # fmt: skip
        assert (item.results is not None) == (include is not None)

    assert [found(response) for response in shown] == [None, [TEXT]]
    for response in shown:
        later = library.client.responses.retrieve
        assert found(later(response.id)) is None
        assert found(later(response.id, include=RESULTS)) == [TEXT]
        assert found(list(later(response.id, stream=True))[-1].response) is None
        assert found(list(later(response.id, stream=True, include=RESULTS))[-1].response) == [TEXT]


def test_replayed_answer_shows_search_results_only_if_included(library: Shop) -> None:
    first, again = (_respond(library, tools=[TOOL], extra_headers=KEY) for _ in range(2))

    assert first.id == again.id
    assert (found(first), found(again)) == (None, None)
    replayed = _ask(library, RESPONSE, KEY, tools=[TOOL])
    assert replayed.headers["Idempotency-Replayed"] == "true"
    assert TEXT not in replayed.text


def test_search_results_enter_no_later_turn_and_no_conversation(library: Shop) -> None:
    conversation = library.client.conversations.create()
    first = _respond(library, tools=[TOOL])
    second = _respond(library, "And dogs?", tools=[TOOL], previous_response_id=first.id)
    _respond(library, tools=[TOOL], conversation=conversation.id)

    shown = [
        *library.client.responses.input_items.list(second.id),
        *library.client.conversations.items.list(conversation.id),
    ]
    calls = [item for item in shown if item.type == "file_search_call"]
    assert [call.results for call in calls] == [None, None]
    assert not any(TEXT in item.to_json() for item in shown)


def test_unstored_response_shows_its_search_results_on_request(library: Shop) -> None:
    plain = _respond(library, tools=[TOOL], store=False)
    wanted = _respond(library, tools=[TOOL], store=False, include=RESULTS)
    odd = _ask(library, RESPONSE, tools=[TOOL], include=[5])

    assert (found(plain), found(wanted)) == (None, [TEXT])
    assert (odd.status_code, odd.json()["error"]["param"]) == (400, "include[0]")


def test_stored_response_is_streamed_in_the_events_that_its_stream_had(library: Shop) -> None:
    live = list(library.client.responses.create(model=MODEL, input="Cats?", tools=[TOOL], stream=True, include=RESULTS))
    later = list(library.client.responses.retrieve(live[-1].response.id, stream=True, include=RESULTS))

    kinds = [kind for kind, _ in groupby(event.type for event in live)]  # a text that is kept comes in one piece
    assert [event.type for event in later] == kinds
    assert kinds[3:6] == [f"response.file_search_call.{step}" for step in ("in_progress", "searching", "completed")]
    assert "response.output_text.annotation.added" in kinds
    assert [event.sequence_number for event in later] == list(range(len(later)))
    told = [[event.to_dict() | {"sequence_number": 0} for event in events if "delta" not in event.type][2:]
            for events in (live, later)]  # fmt: skip
    assert told[0] == told[1]
