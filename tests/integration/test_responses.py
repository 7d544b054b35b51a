"""Responses for an interactive client: the official SDK, the real API and its Redis, a consumer on a fake engine."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseCompletedEvent, ResponseErrorEvent, ResponseTextDeltaEvent
from sqlalchemy import select

from jobs.clock import now
from jobs.inference.tables import StoredResponse
from jobs.ledger.tables import Audit
from tests.support.citing import RESULTS, TEXT, TOOL, citing, found, searching
from tests.support.lost import look_twice
from tests.support.shop import MODEL, Shop
from tests.support.system import eventually
from workers.dispatcher.retention import Retention
from workers.engines.port import Answer, EngineFault, Request, refusal


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Iterator[Shop]:
    made = make_shop()
    with made.open():
        yield made


def _create(shop: Shop, said: Any = "Hello", **fields: Any) -> Response:
    response = shop.client.responses.create(model=MODEL, input=said, **fields)
    assert isinstance(response, Response)
    return response


def test_a_response_is_answered_and_kept(shop: Shop) -> None:
    made = _create(shop, metadata={"team": "blue"}, instructions="Be brief.")

    assert (made.object, made.status, made.model) == ("response", "completed", MODEL)
    assert made.id.startswith("resp_")
    assert made.output_text.startswith("echo ")
    assert (made.metadata, made.previous_response_id) == ({"team": "blue"}, None)
    assert made.usage
    assert made.usage.total_tokens > 0
    assert shop.client.responses.retrieve(made.id) == made
    assert shop.asked == ["Hello"]


def test_a_response_that_is_not_to_be_kept_is_not(shop: Shop) -> None:
    made = _create(shop, store=False)

    with pytest.raises(openai.NotFoundError):
        shop.client.responses.retrieve(made.id)
    assert shop.objects("responses") == []


def test_a_conversation_goes_on_from_any_of_its_turns(shop: Shop) -> None:
    first = _create(shop, "one")
    second = _create(shop, "two", previous_response_id=first.id)
    shop.client.responses.delete(first.id)

    third = _create(shop, [{"role": "user", "content": "three"}], previous_response_id=second.id)

    assert third.previous_response_id == second.id
    answers = [first.output_text, second.output_text]
    assert shop.asked[-1].split("\n") == ["one", answers[0], "two", answers[1], "three"]
    items = list(shop.client.responses.input_items.list(third.id, order="asc"))
    assert [item.role for item in items] == ["user", "assistant", "user", "assistant", "user"]  # type: ignore[union-attr]
    assert [item.content[0].text for item in items] == shop.asked[-1].split("\n")  # type: ignore[union-attr,index]


def test_the_output_of_a_function_needs_its_call(shop: Shop) -> None:
    output = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}

    with pytest.raises(openai.BadRequestError, match=r"No tool call found .* with call_id call_1") as refused:
        _create(shop, [output])

    assert (refused.value.param, shop.asked) == ("input", [])


def _listed(client: openai.OpenAI, query: str = "") -> Any:
    return client.get(f"/responses{query}", cast_to=object)


def test_stored_responses_are_listed_newest_first(shop: Shop) -> None:
    first, second = _create(shop, "one", metadata={"team": "blue"}), _create(shop, "two")
    _create(shop, "three", store=False)

    page = _listed(shop.client)

    assert [Response.model_validate(response) for response in page["data"]] == [second, first]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (second.id, first.id, False)
    assert _listed(shop.stranger())["data"] == []


def test_list_of_responses_is_selected_by_model_and_metadata(shop: Shop) -> None:
    blue, other = _create(shop, "one", metadata={"team": "blue"}), _create(shop, "two")
    found = {
        query: [response["id"] for response in _listed(shop.client, query)["data"]]
        for query in ("?metadata[team]=blue", f"?model={MODEL}&order=asc", "?model=another", "?limit=1")
    }

    assert list(found.values()) == [[blue.id], [blue.id, other.id], [], [other.id]]


def test_list_of_responses_goes_on_behind_a_deleted_one(shop: Shop) -> None:
    first, second = _create(shop, "one"), _create(shop, "two")
    shop.client.responses.delete(second.id)

    assert [response["id"] for response in _listed(shop.client, f"?after={second.id}")["data"]] == [first.id]
    with pytest.raises(openai.BadRequestError, match="No object with id 'resp_none'"):
        _listed(shop.client, "?after=resp_none")


def test_input_items_come_in_pages(shop: Shop) -> None:
    made = _create(shop, [{"role": "user", "content": f"line {n}"} for n in range(5)])

    pages = shop.client.responses.input_items.list(made.id, limit=2)
    texts = [item.content[0].text for item in pages]  # type: ignore[union-attr,index]

    assert texts == [f"line {n}" for n in (4, 3, 2, 1, 0)]
    with pytest.raises(openai.BadRequestError, match="No object with id 'msg_none'"):
        shop.client.responses.input_items.list(made.id, after="msg_none")


def test_a_stream_says_the_same_and_is_kept_before_its_last_event(shop: Shop) -> None:
    whole = _create(shop)
    deltas, kept = [], None

    with shop.client.responses.create(model=MODEL, input="Hello", stream=True) as stream:
        events = []
        for event in stream:
            events.append(event)
            if isinstance(event, ResponseTextDeltaEvent):
                deltas.append(event.delta)
            if isinstance(event, ResponseCompletedEvent):
                kept = shop.client.responses.retrieve(event.response.id)

    assert "".join(deltas) == whole.output_text
    assert isinstance(events[-1], ResponseCompletedEvent)
    assert kept == events[-1].response
    assert events[0].response.id == kept.id  # type: ignore[union-attr]
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.fixture
def library(make_shop: Callable[..., Shop]) -> Iterator[Shop]:
    made = make_shop({"fault": citing}, searching)
    with made.open():
        yield made


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_found_is_kept_and_shown_to_whoever_asks_for_it(library: Shop, stream: bool) -> None:
    shown = []
    for include in (None, RESULTS):
        if not stream:
            shown.append(_create(library, tools=[TOOL], include=include))
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


def test_a_key_replays_what_was_found_as_it_is_asked_for(library: Shop) -> None:
    first, again = (_create(library, tools=[TOOL], extra_headers={"Idempotency-Key": "k"}) for _ in range(2))

    assert first.id == again.id
    assert (found(first), found(again)) == (None, None)
    body = {"model": MODEL, "input": "Hello", "tools": [TOOL]}
    replayed = library.post("responses", body, **{"Idempotency-Key": "k"})
    assert replayed.headers["Idempotency-Replayed"] == "true"
    assert TEXT not in replayed.text


def test_search_results_enter_no_later_turn_and_no_conversation(library: Shop) -> None:
    conversation = library.client.conversations.create()
    first = _create(library, tools=[TOOL])
    second = _create(library, "And dogs?", tools=[TOOL], previous_response_id=first.id)
    _create(library, tools=[TOOL], conversation=conversation.id)

    shown = [
        *library.client.responses.input_items.list(second.id),
        *library.client.conversations.items.list(conversation.id),
    ]
    calls = [item for item in shown if item.type == "file_search_call"]
    assert [call.results for call in calls] == [None, None]
    assert not any(TEXT in item.to_json() for item in shown)


def test_unstored_response_shows_its_search_results_on_request(library: Shop) -> None:
    plain = _create(library, tools=[TOOL], store=False)
    wanted = _create(library, tools=[TOOL], store=False, include=RESULTS)
    odd = library.post("responses", {"model": MODEL, "input": "Hello", "tools": [TOOL], "include": [5]})

    assert (found(plain), found(wanted)) == (None, [TEXT])
    assert (odd.status_code, odd.json()["error"]["param"]) == (400, "include[0]")


def test_a_kept_response_is_told_in_the_events_that_its_stream_had(library: Shop) -> None:
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


def test_events_have_names_and_no_done(shop: Shop) -> None:
    said = shop.post("responses", {"model": MODEL, "input": "Hello", "stream": True})

    assert said.headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in said.text.strip().split("\n\n")]
    assert all(name == f"event: {json.loads(data.removeprefix('data: '))['type']}" for name, data in blocks)
    assert "[DONE]" not in said.text


def test_a_stream_that_breaks_ends_with_an_error_and_is_not_kept(shop: Shop) -> None:
    events = list(shop.client.responses.create(model=MODEL, input="!cut here", stream=True))

    assert isinstance(events[-1], ResponseErrorEvent)
    assert events[-1].code == "engine_error"
    assert shop.objects("responses") == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_passed_on_and_keeps_nothing(make_shop: Callable[..., Shop], stream: bool) -> None:
    shop = make_shop(engine={"fault": lambda _: refusal(400, "Too long.", code="context_length_exceeded")})
    with shop.open(), pytest.raises(openai.BadRequestError) as refused:
        shop.client.responses.create(model=MODEL, input="Hello", stream=stream)

    assert (refused.value.code, shop.objects("responses")) == ("context_length_exceeded", [])


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"previous_response_id": "resp_none"}, "previous_response_id", "previous_response_not_found"),
        ({"background": True, "store": False}, "store", "unsupported_value"),
    ],
)
def test_unsupported_fields_are_refused_before_the_engine_is_asked(
    shop: Shop, fields: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        _create(shop, **fields)

    assert (refused.value.param, refused.value.code) == (param, code)
    assert shop.asked == []


def test_on_a_full_disk_only_what_is_not_kept_is_answered(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(min_free_bytes=1 << 60)
    with shop.open():
        with pytest.raises(openai.APIStatusError) as full:
            _create(shop)
        assert shop.asked == []
        answered = _create(shop, store=False)

    assert (full.value.status_code, full.value.code) == (507, "insufficient_storage")
    assert answered.output_text


@pytest.mark.parametrize("answer", [b'{"error": null}', b'{"output": null}', b'{"output": ["x"]}', b"[]"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_no_response_is_an_error_and_is_not_kept(
    make_shop: Callable[..., Shop], answer: bytes, stream: bool
) -> None:
    shop = make_shop(engine={"fault": lambda _: Answer(200, answer)})
    with shop.open(), pytest.raises(openai.InternalServerError) as broken:
        shop.client.responses.create(model=MODEL, input="Hello", stream=stream)

    assert (broken.value.code, shop.objects("responses")) == ("engine_error", [])


def test_items_may_say_less_than_they_are_shown_with(shop: Shop) -> None:
    made = _create(shop, [{"id": None, "type": None, "role": "user", "content": "one", "status": "completed"}])

    [item] = list(shop.client.responses.input_items.list(made.id))

    assert item.id
    assert item.content[0].text == "one"  # type: ignore[union-attr,index]


def test_an_item_whose_type_is_none_is_refused(shop: Shop) -> None:
    said = shop.post("responses", {"model": MODEL, "input": [{"type": 3, "role": "user", "content": "x"}]})

    assert (said.status_code, said.json()["error"]["param"], shop.asked) == (400, "input[0]", [])


@pytest.mark.parametrize("background", [False, True])
def test_a_role_that_does_not_exist_is_refused_with_those_that_do(shop: Shop, background: bool) -> None:
    items = [{"role": "user", "content": "x"}, {"role": "wizard", "content": "x"}]

    said = shop.post("responses", {"model": MODEL, "input": items, "background": background})

    error = said.json()["error"]
    assert (said.status_code, error["param"], shop.asked) == (400, "input[1]", [])
    assert "'wizard'. Supported roles are: user, assistant, system, developer." in error["message"]


def test_earlier_turns_suffice_as_input(shop: Shop) -> None:
    """In any of the ways a response is asked for."""
    first = _create(shop, "one")
    conversation = shop.client.conversations.create(items=[{"role": "user", "content": "one"}])

    after = shop.client.responses.create(model=MODEL, previous_response_id=first.id)
    events = list(shop.client.responses.create(model=MODEL, conversation=conversation.id, stream=True))
    queued = shop.client.responses.create(model=MODEL, previous_response_id=first.id, background=True)

    assert (after.status, events[-1].type, queued.status) == ("completed", "response.completed", "queued")
    assert shop.asked[1:3] == [f"one\n{first.output_text}", "one"]
    assert len(list(shop.client.responses.input_items.list(queued.id))) == 2
    assert [item.role for item in shop.client.conversations.items.list(conversation.id)] == ["assistant", "user"]  # type: ignore[union-attr]


@pytest.mark.parametrize("body", [{}, {"input": None}, {"conversation": True}], ids=["none", "null", "empty"])
def test_where_nothing_was_said_before_an_input_is_required(shop: Shop, body: dict[str, Any]) -> None:
    if "conversation" in body:
        body = {"conversation": shop.client.conversations.create().id}

    said = shop.post("responses", {"model": MODEL, **body})

    assert (said.status_code, said.json()["error"]["param"]) == (400, "input")
    assert said.json()["error"]["code"] == "missing_required_parameter"
    assert shop.asked == []


def test_a_deleted_response_is_gone_with_its_bytes_and_leaves_a_receipt(shop: Shop) -> None:
    made = _create(shop)

    shop.client.responses.delete(made.id)

    for call in (shop.client.responses.retrieve, shop.client.responses.delete, shop.client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    assert shop.objects("responses") == []
    with shop.app.state.services.db.read() as session:
        actions = session.scalars(select(Audit.action).where(Audit.target == made.id).order_by(Audit.id)).all()
    assert actions == ["response.create", "response.delete"]


def test_only_what_runs_in_the_background_can_be_cancelled_and_all_can_be_streamed_again(shop: Shop) -> None:
    made = _create(shop)

    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        shop.client.responses.cancel(made.id)
    again = list(shop.client.responses.retrieve(made.id, stream=True))
    assert again[-1].response == made  # type: ignore[union-attr]


def test_one_key_asks_once(shop: Shop) -> None:
    body = {"model": MODEL, "input": "Hello"}
    first, second = (shop.post("responses", body, **{"Idempotency-Key": "k"}) for _ in range(2))
    other = shop.post("responses", {**body, "input": "Bye"}, **{"Idempotency-Key": "k"})

    assert first.json() == second.json()
    assert (second.headers.get("Idempotency-Replayed"), other.status_code) == ("true", 422)
    assert shop.asked == ["Hello"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("responses", {"input": "Hello"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "store": True}),
    ],
)
def test_while_a_key_is_being_answered_whoever_comes_with_it_is_to_come_again(
    make_shop: Callable[..., Shop], path: str, body: dict[str, Any]
) -> None:
    shop = make_shop(engine={"delay": 1.5})
    asked = {"model": MODEL, **body}, {"Idempotency-Key": "k"}
    with shop.open(), ThreadPoolExecutor(1) as pool:
        first = pool.submit(shop.post, path, asked[0], **asked[1])
        eventually(lambda: shop.host._in_flight == 1, 10, "the first is being answered")
        second = shop.post(path, asked[0], **asked[1])
        answer = first.result()
        third = shop.post(path, asked[0], **asked[1])

    assert (second.status_code, second.json()["error"]["code"]) == (409, "idempotency_key_in_use")
    assert (second.headers["x-should-retry"], second.headers["Retry-After"]) == ("true", "1")
    assert (answer.status_code, third.headers["Idempotency-Replayed"], third.json()) == (200, "true", answer.json())
    assert shop.asked == ["Hello"]


def test_a_key_whose_request_failed_is_free_again(make_shop: Callable[..., Shop]) -> None:
    broken: list[Request] = []

    def once(request: Request) -> EngineFault | None:
        broken.append(request)
        return EngineFault("it broke") if len(broken) == 1 else None

    shop = make_shop(engine={"fault": once})
    with shop.open():
        said = [
            shop.post("responses", {"model": MODEL, "input": "Hello"}, **{"Idempotency-Key": "k"}) for _ in range(2)
        ]

    assert [answer.status_code for answer in said] == [500, 200]


def test_another_project_sees_nothing_of_it(shop: Shop) -> None:
    made = _create(shop)
    other = shop.stranger()

    with pytest.raises(openai.NotFoundError):
        other.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError):
        other.responses.create(model=MODEL, input="go on", previous_response_id=made.id)


def test_what_has_expired_is_gone_with_its_bytes_and_orphans_too(shop: Shop) -> None:
    made, kept = _create(shop), _create(shop)
    services = shop.app.state.services
    services.storage.put("responses/resp_orphan", b"{}")
    with services.db.write() as session:
        session.get_one(StoredResponse, made.id).expires_at = now() - 1

    with pytest.raises(openai.NotFoundError):
        shop.client.responses.retrieve(made.id)
    retention = Retention(services.config, services.db, services.storage)
    retention.run()
    assert shop.objects("responses") == sorted(["responses/resp_orphan", f"responses/{kept.id}"])
    look_twice(services.config, services.db, services.storage)
    assert shop.objects("responses") == [f"responses/{kept.id}"]
