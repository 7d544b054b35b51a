"""Conversations: the official SDK, the real API and its storage; and responses that go on from them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from sqlalchemy import select

from api.http.idempotency import Once
from jobs.errors import DatabaseBusy, StorageUnavailable
from jobs.ledger.tables import Audit
from tests.support.interactive_api import MODEL, Shop
from tests.support.orphan_files import look_twice
from workers.engines.port import refusal

KEY = {"Idempotency-Key": "k"}


def _message(text: str, role: str = "user") -> Any:
    return {"type": "message", "role": role, "content": text}


def _texts(shop: Shop, conversation_id: str) -> list[str]:
    items = shop.client.conversations.items.list(conversation_id, order="asc")
    return [item.content[0].text for item in items]  # type: ignore[union-attr]


def _answer(shop: Shop, said: Any, conversation: Any, **fields: Any) -> Response:
    made = shop.client.responses.create(model=MODEL, input=said, conversation=conversation, **fields)
    assert isinstance(made, Response)
    return made


def test_a_conversation_is_made_read_and_relabelled(shop: Shop) -> None:
    made = shop.client.conversations.create(items=[_message("one")], metadata={"team": "blue"})

    assert (made.object, made.metadata) == ("conversation", {"team": "blue"})
    assert made.id.startswith("conv_")
    assert shop.client.conversations.retrieve(made.id) == made
    assert shop.client.conversations.update(made.id, metadata={"team": "red"}).metadata == {"team": "red"}
    assert shop.client.conversations.retrieve(made.id).metadata == {"team": "red"}
    assert _texts(shop, made.id) == ["one"]


def test_items_are_added_listed_page_by_page_read_and_taken_out(shop: Shop) -> None:
    made = shop.client.conversations.create()
    added = shop.client.conversations.items.create(
        made.id, items=[_message("one"), _message("two", "assistant"), {"role": "user", "content": "three"}]
    )
    shop.client.conversations.items.create(made.id, items=[_message("four")])

    assert [item.content[0].type for item in added.data] == ["input_text", "output_text", "input_text"]  # type: ignore[union-attr]
    pages = shop.client.conversations.items.list(made.id, limit=1)
    assert [item.content[0].text for item in pages] == ["four", "three", "two", "one"]  # type: ignore[union-attr]
    second = added.data[1]
    assert shop.client.conversations.items.retrieve(str(second.id), conversation_id=made.id) == second
    assert shop.client.conversations.items.delete(str(second.id), conversation_id=made.id).id == made.id
    assert _texts(shop, made.id) == ["one", "three", "four"]
    for call in (shop.client.conversations.items.retrieve, shop.client.conversations.items.delete):
        with pytest.raises(openai.NotFoundError):
            call(str(second.id), conversation_id=made.id)


def test_a_response_goes_on_from_it_and_is_part_of_it(shop: Shop) -> None:
    made = shop.client.conversations.create(items=[_message("one")])

    first = _answer(shop, "two", made.id)
    second = _answer(shop, [{"role": "user", "content": "three"}], {"id": made.id})

    assert first.conversation
    assert first.conversation.id == made.id
    assert shop.asked == ["one\ntwo", f"one\ntwo\n{first.output_text}\nthree"]
    assert _texts(shop, made.id) == ["one", "two", first.output_text, "three", second.output_text]
    assert shop.client.responses.retrieve(second.id) == second


def test_a_stream_is_part_of_it_before_its_last_event(shop: Shop) -> None:
    made = shop.client.conversations.create()
    texts: list[str] = []

    for event in shop.client.responses.create(model=MODEL, input="one", conversation=made.id, stream=True):
        if event.type == "response.completed":
            texts = _texts(shop, made.id)
            assert texts == ["one", event.response.output_text]

    assert texts


def test_identical_messages_are_two_items(shop: Shop) -> None:
    made = shop.client.conversations.create()
    for _ in range(2):  # the fake engine gives the same answer the same id
        shop.client.responses.create(model=MODEL, input="same", store=False, conversation=made.id)
        shop.client.conversations.items.create(made.id, items=[{**_message("x"), "id": "msg_mine"}])

    items = list(shop.client.conversations.items.list(made.id))

    assert len({item.id for item in items}) == len(items) == 6


def test_refused_input_is_not_part_of_the_conversation(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop.engine, "_fault", lambda _: refusal(400, "No.", code="bad"))
    made = shop.client.conversations.create(items=[_message("one")])
    with pytest.raises(openai.BadRequestError):
        _answer(shop, "two", made.id)

    assert _texts(shop, made.id) == ["one"]


def test_concurrent_turns_lose_no_item(shop: Shop) -> None:
    made = shop.client.conversations.create()

    def say(n: int) -> None:
        shop.client.conversations.items.create(made.id, items=[_message(f"{n}"), _message(f"{n} again")])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(say, range(12)))

    texts = _texts(shop, made.id)
    assert sorted(texts) == sorted([f"{n}" for n in range(12)] + [f"{n} again" for n in range(12)])
    for n in range(12):
        assert texts.index(f"{n} again") == texts.index(f"{n}") + 1
    assert len(shop.objects("conversations")) == 1


def test_deletion_removes_conversation_and_its_items(shop: Shop) -> None:
    made = shop.client.conversations.create(items=[_message("one")])
    response = _answer(shop, "two", made.id)

    assert shop.client.conversations.delete(made.id).deleted

    assert shop.objects("conversations") == []
    with pytest.raises(openai.NotFoundError):
        shop.client.conversations.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        _answer(shop, "three", made.id)
    assert shop.client.responses.retrieve(response.id) == response
    with shop.app.state.services.db.read() as session:
        actions = session.scalars(select(Audit.action).where(Audit.target == made.id).order_by(Audit.id)).all()
    assert actions == ["conversation.create", "conversation.delete"]


def test_conversation_without_stored_items_is_404_and_deletable(shop: Shop) -> None:
    made = shop.client.conversations.create(items=[_message("Hello")])
    for path in shop.objects("conversations"):
        shop.app.state.services.storage.delete(path)

    with pytest.raises(openai.NotFoundError, match="are gone"):
        _texts(shop, made.id)
    with pytest.raises(openai.NotFoundError):
        _answer(shop, "Are you there?", made.id)

    shop.client.conversations.delete(made.id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"previous_response_id": "resp_1"}, "previous_response_id"), ({"background": True}, "background")],
)
def test_conflicting_fields_are_refused(shop: Shop, fields: dict[str, Any], param: str) -> None:
    made = shop.client.conversations.create()

    with pytest.raises(openai.BadRequestError) as refused:
        _answer(shop, "one", made.id, **fields)

    assert (refused.value.param, refused.value.code) == (param, "mutually_exclusive_parameters")


@pytest.mark.parametrize(
    "items",
    [
        [{"role": "user"}], [{"type": "message", "content": "x"}], [{"type": 3}], [], [_message("x")] * 21,
        [_message("x", "wizard")],
    ],
    ids=["no content", "no role", "no type", "none", "too many", "no such role"],
)  # fmt: skip
def test_bad_items_are_refused_and_change_nothing(shop: Shop, items: Any) -> None:
    made = shop.client.conversations.create()

    with pytest.raises(openai.BadRequestError) as refused:
        shop.client.conversations.items.create(made.id, items=items)

    assert str(refused.value.param).startswith("items")
    assert _texts(shop, made.id) == []


def test_calls_of_functions_and_their_outputs_have_a_status(shop: Shop) -> None:
    call: Any = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output: Any = {"type": "function_call_output", "call_id": "c", "output": "1"}
    made = shop.client.conversations.create(items=[call, {**output, "status": None}])

    added = shop.client.conversations.items.create(made.id, items=[output, {**call, "status": "incomplete"}])

    listed = list(shop.client.conversations.items.list(made.id, order="asc"))
    statuses = ["completed", "completed", "completed", "incomplete"]
    assert [item.status for item in listed] == statuses  # type: ignore[union-attr]
    assert [item.status for item in added.data] == statuses[2:]  # type: ignore[union-attr]


@pytest.mark.parametrize("at_once", [False, True])
def test_items_with_same_idempotency_key_are_appended_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    made = shop.client.conversations.create()
    path, body = f"conversations/{made.id}/items", {"items": [_message("one")]}
    first = shop.post(path, body, **KEY).json()
    with monkeypatch.context() as patch:
        if at_once:  # the second looks before the first has committed
            patch.setattr(Once, "replay", lambda *_: None)
        second = shop.post(path, body, **KEY).json()

    other = shop.post(path, {"items": [_message("two")]}, **KEY)

    assert second == first
    assert (other.status_code, _texts(shop, made.id)) == (422, ["one"])
    assert len(shop.objects("conversations")) == 1


def test_lost_commit_acknowledgement_loses_no_item(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shop.client.conversations.create()
    run = Once.run

    def lost(once: Once, *arguments: Any) -> None:
        run(once, *arguments)
        raise DatabaseBusy

    monkeypatch.setattr(Once, "run", lost)

    with pytest.raises(openai.InternalServerError):
        shop.client.conversations.items.create(made.id, items=[_message("one")])

    assert _texts(shop, made.id) == ["one"]


def test_items_are_appended_once_while_storage_deletes_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever were told of a failure would say it again."""
    made = shop.client.conversations.create()
    response = _answer(shop, "one", made.id)

    def away(_: str) -> None:
        raise StorageUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(shop.app.state.services.storage, "delete", away)
        _answer(shop, "two", made.id)
        shop.client.conversations.items.create(made.id, items=[_message("three")])
        said = _texts(shop, made.id)
        shop.client.responses.delete(response.id)
        shop.client.conversations.delete(made.id)

    assert [text for text in said if text in ("one", "two", "three")] == ["one", "two", "three"]
    assert len(said) == 5  # and an answer to each question
    with pytest.raises(openai.NotFoundError):
        shop.client.conversations.retrieve(made.id)


def test_idempotency_key_makes_single_response_and_turn(shop: Shop) -> None:
    made = shop.client.conversations.create()
    body = {"model": MODEL, "input": "one", "conversation": made.id}

    unstored = shop.post("responses", {**body, "store": False}, **KEY)
    assert (unstored.status_code, unstored.json()["error"]["param"], shop.asked) == (400, "store", [])
    said = [shop.post("responses", body, **KEY).json() for _ in range(2)]

    assert said[0] == said[1]
    assert len(_texts(shop, made.id)) == 2


def test_another_project_sees_nothing_of_it(shop: Shop) -> None:
    made = shop.client.conversations.create(items=[_message("one")])
    other = shop.stranger()

    for call in (other.conversations.retrieve, other.conversations.items.list, other.conversations.delete):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    with pytest.raises(openai.NotFoundError):
        other.responses.create(model=MODEL, input="x", conversation=made.id)


def test_leftovers_of_a_crash_are_removed_and_objects_in_use_stay(shop: Shop) -> None:
    made = shop.client.conversations.create(items=[_message("one")])
    services = shop.app.state.services
    services.storage.put("conversations/conv_1-lost", b"[]")

    look_twice(services.config, services.db, services.storage)

    assert len(shop.objects("conversations")) == 1
    assert _texts(shop, made.id) == ["one"]
