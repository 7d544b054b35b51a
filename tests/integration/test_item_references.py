"""References to stored items in an input: the official SDK, the real API and its Redis, a fake engine behind it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import openai
import pytest

from jobs.inference import compaction
from jobs.inference.item_ids import SEALED
from tests.support.interactive_api import MODEL, Shop
from workers.engines.port import Answer, Request

CALL = {
    "type": "function_call", "id": "fc_engine", "call_id": "call_1", "name": "get_weather", "status": "completed",
    "arguments": '{"city":"Oslo"}',
}  # fmt: skip
REASONING = {"type": "reasoning", "id": "rs_engine", "summary": [], "encrypted_content": "sealed"}


@pytest.fixture
def bodies() -> list[dict[str, Any]]:
    """Return what the engine is asked."""
    return []


@pytest.fixture
def shop(make_shop: Callable[..., Shop], bodies: list[dict[str, Any]]) -> Iterator[Shop]:
    """Answer "weather" with a call, anything else as the fake engine does."""

    def fault(request: Request) -> Answer | None:
        bodies.append(request.body)
        last = msgspec.json.encode(request.body["input"][-1])
        return _answer([REASONING, CALL]) if b"weather" in last else None

    made = make_shop({"fault": fault})
    with made.open():
        yield made


def _answer(output: Sequence[dict[str, Any]]) -> Answer:
    said = {"id": "resp_engine", "object": "response", "created_at": 1, "status": "completed", "model": MODEL}
    return Answer(200, msgspec.json.encode({**said, "output": output, "tools": [], "tool_choice": "auto"}))


def _reference(item: Any) -> dict[str, Any]:
    return {"type": "item_reference", "id": item if isinstance(item, str) else item.id}


def _ask(shop: Shop, *items: Any, **fields: Any) -> Any:
    return shop.client.responses.create(model=MODEL, input=list(items), **fields)


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _texts(items: Any) -> list[str]:
    return [item.content[0].text for item in items]


def test_an_engine_is_shown_the_stored_item(shop: Shop, bodies: list[dict[str, Any]]) -> None:
    first = _ask(shop, _user("one"))

    second = _ask(shop, _user("one"), _reference(first.output[0]), _user("two"))

    assert shop.asked[-1] == f"one\n{first.output_text}\ntwo"
    assert bodies[-1]["input"][1] == first.output[0].to_dict()
    assert second.output[0].id != first.output[0].id


def test_the_type_of_a_reference_may_be_left_out(shop: Shop) -> None:
    first = _ask(shop, _user("one"))

    for reference in ({"id": first.output[0].id}, {"type": None, "id": first.output[0].id}):
        _ask(shop, reference, _user("two"))
        assert shop.asked[-1] == f"{first.output_text}\ntwo"


def test_function_calls_are_referenced_with_their_outputs(shop: Shop, bodies: list[dict[str, Any]]) -> None:
    first = _ask(shop, _user("how is the weather"))
    output = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}

    _ask(shop, _user("how is the weather"), *map(_reference, first.output), output)

    _, reasoning, call, given = bodies[-1]["input"]
    assert reasoning == {**REASONING, "id": first.output[0].id}
    assert call == {**CALL, "id": first.output[1].id}
    assert given["output"] == "sunny"


def test_the_ids_of_a_stream_are_those_that_are_stored(shop: Shop) -> None:
    events = list(_ask(shop, _user("one"), stream=True))
    first = events[-1].response
    told = {event.item.id for event in events if event.type.startswith("response.output_item")}
    told |= {event.item_id for event in events if hasattr(event, "item_id")}

    assert told == {first.output[0].id}
    assert shop.client.responses.retrieve(first.id).output == first.output
    again = list(_ask(shop, _reference(first.output[0]), _user("two"), stream=True))
    assert again[-1].type == "response.completed"
    assert shop.asked[-1] == f"{first.output_text}\ntwo"


def test_input_items_are_referenced_by_listed_ids(shop: Shop) -> None:
    first = _ask(shop, _user("one"), _user("two"))
    listed = list(shop.client.responses.input_items.list(first.id, order="asc"))

    _ask(shop, _reference(listed[1]), _reference(listed[0]))

    assert shop.asked[-1] == "two\none"


def test_resolved_item_is_listed_continued_and_stored_like_inline_item(shop: Shop) -> None:
    first = _ask(shop, _user("one"))
    second = _ask(shop, _reference(first.output[0]), _user("two"))
    shop.client.responses.delete(first.id)

    third = _ask(shop, _user("three"), previous_response_id=second.id)
    fourth = _ask(shop, _reference(second.output[0]), _user("four"), background=True)

    listed = list(shop.client.responses.input_items.list(second.id, order="asc"))
    assert (listed[0].id, _texts(listed)) == (first.output[0].id, [first.output_text, "two"])
    assert shop.asked[-1].split("\n") == [first.output_text, "two", second.output_text, "three"]
    assert third.status == "completed"
    assert _texts(shop.client.responses.input_items.list(fourth.id, order="asc")) == [second.output_text, "four"]


def test_an_item_of_a_deleted_response_is_found_where_it_was_repeated(shop: Shop) -> None:
    """The item that is referred to last is looked up first: its response has the earlier items."""
    first = _ask(shop, _user("one"))
    second = _ask(shop, _reference(first.output[0]), _user("two"))
    shop.client.responses.delete(first.id)

    _ask(shop, _reference(first.output[0]), _user("two"), _reference(second.output[0]), _user("three"))

    assert shop.asked[-1].split("\n") == [first.output_text, "two", second.output_text, "three"]


def test_a_long_history_of_references_is_read_from_its_last_response(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    history: list[Any] = []
    for turn in range(5):
        history.append(_user(f"turn {turn}"))
        history += map(_reference, _ask(shop, *history).output)
    reads: list[str] = []
    reader = shop.app.state.services.storage.reader
    monkeypatch.setattr(shop.app.state.services.storage, "reader", lambda path: reads.append(path) or reader(path))

    _ask(shop, *history, _user("last"))

    assert len(reads) == 1
    assert len(shop.asked[-1].split("\n")) == 11


@pytest.mark.parametrize("store", [True, False])
def test_items_of_a_conversation_are_referred_to(shop: Shop, store: bool) -> None:
    made = shop.client.conversations.create(items=[{"type": "message", **_user("one")}])
    answered = _ask(shop, _user("two"), conversation=made.id, store=store)
    items = list(shop.client.conversations.items.list(made.id, order="asc"))
    assert answered.output[0].id == items[2].id

    _ask(shop, *map(_reference, items), _user("three"))

    assert shop.asked[-1] == f"one\ntwo\n{answered.output_text}\nthree"


def test_items_appended_by_reference_are_part_of_the_conversation(shop: Shop) -> None:
    first = _ask(shop, _user("one"))
    made = shop.client.conversations.create(items=[_reference(first.output[0])])  # type: ignore[list-item]
    second = _ask(shop, _reference(first.output[0]), conversation=made.id)
    shop.client.conversations.items.create(made.id, items=[_reference(second.output[0])])  # type: ignore[list-item]

    said = _texts(shop.client.conversations.items.list(made.id, order="asc"))

    assert said == [first.output_text] * 2 + [second.output_text] * 2


def test_compaction_resolves_item_reference(shop: Shop) -> None:
    first = _ask(shop, _user("one"))

    made = shop.client.responses.compact(model=MODEL, input=[_reference(first.output[0]), _user("two")])  # type: ignore[list-item]

    assert shop.asked[-1].split("\n")[:2] == [first.output_text, "two"]
    assert made.output[-1].type == compaction.ITEM


def _unknown(shop: Shop) -> list[str]:
    """Ids of no stored item of the project, all but one well formed."""
    stranger = shop.stranger()
    foreign = stranger.responses.create(model=MODEL, input="one")
    talk = stranger.conversations.create(items=[_user("one")])  # type: ignore[list-item]
    [item] = stranger.conversations.items.list(talk.id)
    unstored = _ask(shop, _user("one"), store=False)
    own = _ask(shop, _user("one"))
    beyond = own.output[0].id[:-1] + "7"
    return [foreign.output[0].id, str(item.id), unstored.output[0].id, beyond, "msg_1", ""]


@pytest.mark.parametrize("path", ["responses", "responses/compact", "responses/input_tokens"])
def test_an_id_that_is_not_there_is_refused_with_its_name(shop: Shop, path: str) -> None:
    unknown = _unknown(shop)
    asked, stored = list(shop.asked), shop.objects("responses")

    for item_id in unknown:
        said = shop.post(path, {"model": MODEL, "input": [_reference(item_id), _user("two")]})
        error = said.json()["error"]
        assert (said.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "input")
        assert error["message"] == f"Item with id '{item_id}' not found."
    assert (shop.asked, shop.objects("responses")) == (asked, stored)


def test_a_conversation_takes_no_unknown_reference(shop: Shop) -> None:
    made = shop.client.conversations.create()

    with pytest.raises(openai.BadRequestError, match="Item with id 'msg_1' not found") as refused:
        shop.client.conversations.items.create(made.id, items=[_reference("msg_1")])  # type: ignore[list-item]

    assert refused.value.param == "items"
    assert list(shop.client.conversations.items.list(made.id)) == []


def test_an_item_is_referred_to_once(shop: Shop) -> None:
    first = _ask(shop, _user("one"))

    with pytest.raises(openai.BadRequestError, match=f"Duplicate item found with id '{first.output[0].id}'"):
        _ask(shop, *[_reference(first.output[0])] * 2)


def test_a_reference_without_an_id_is_refused(shop: Shop) -> None:
    said = shop.post("responses", {"model": MODEL, "input": [{"type": "item_reference", "id": 3}]})

    assert (said.status_code, said.json()["error"]["param"], shop.asked) == (400, "input[0]", [])


def test_references_into_too_many_responses_are_refused_before_all_are_read(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.inference.item_references._MAX_READ", 2)
    answers = [_ask(shop, _user(f"{n}")) for n in range(3)]

    _ask(shop, *(_reference(made.output[0]) for made in answers[:2]))
    with pytest.raises(openai.BadRequestError) as refused:
        _ask(shop, *(_reference(made.output[0]) for made in answers))

    assert refused.value.code == "too_many_values"


def test_an_engine_that_seals_its_reasoning_finds_it_under_the_id_that_it_sealed(
    shop: Shop, bodies: list[dict[str, Any]]
) -> None:
    first = _ask(shop, _user("how is the weather"), include=[SEALED])

    _ask(shop, *map(_reference, first.output), _user("go on"))

    assert first.output[0].id == REASONING["id"]
    assert bodies[-1]["input"][0] == REASONING
    assert first.output[1].id != CALL["id"]
