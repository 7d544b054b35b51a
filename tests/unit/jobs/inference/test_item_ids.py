"""Ids of stored items, which say where the item is stored."""

from typing import Any

import pytest

from jobs.inference.item_ids import SEALED, OutputIds, input_item_id, new_conversation_item_id, owner_of

OWN = "a" * 24
TALK = "c" * 24
RESPONSE: dict[str, Any] = {"id": f"resp_{OWN}", "store": True, "conversation": None}


@pytest.mark.parametrize(
    ("item", "prefix"),
    [
        ({"type": "message", "id": "msg_1"}, "msg"),
        ({"type": "function_call", "id": "ctc_1_2"}, "ctc"),
        ({"type": "message"}, "msg"),
        ({"type": "file_search_call", "id": None}, "fs"),
        ({"type": "web_search_call"}, "out"),
        ({"type": "message", "id": "1234"}, "out"),
        ({"type": "message", "id": "item_1"}, "out"),
    ],
)
def test_an_item_of_an_output_is_named_after_its_response_and_place(item: dict[str, Any], prefix: str) -> None:
    named = OutputIds.of(RESPONSE, {}).add_id(item, 17)

    assert named == {**item, "id": f"{prefix}_{OWN}0011"}
    assert OutputIds.of(RESPONSE, {}).add_id(named, 17) == named
    assert owner_of(named["id"]) == OWN


@pytest.mark.parametrize(("store", "owner"), [(True, OWN), (False, TALK + OWN)])
def test_item_id_names_storing_response_or_conversation(store: bool, owner: str) -> None:
    response = {**RESPONSE, "store": store, "conversation": {"id": f"conv_{TALK}"}}

    assert OutputIds.of(response, {}).add_id({"type": "message"}, 0)["id"] == f"msg_{owner}0000"
    assert owner_of(f"msg_{owner}0000") == owner[:24]


@pytest.mark.parametrize("kind", ["message", "function_call"])
def test_an_item_of_a_conversation_is_named_after_it(kind: str) -> None:
    made = {new_conversation_item_id(f"conv_{TALK}", {"type": kind}) for _ in range(2)}

    assert len(made) == 2
    assert {owner_of(item_id) for item_id in made} == {TALK}
    assert max(map(len, made)) <= 64


def test_an_item_of_an_input_is_named_after_its_response_and_place() -> None:
    assert input_item_id(f"resp_{OWN}", 10) == f"item_{OWN}000a"


@pytest.mark.parametrize("include", [None, [], [SEALED]])
def test_sealed_reasoning_keeps_the_id_of_its_engine(include: Any) -> None:
    ids = OutputIds.of(RESPONSE, {"include": include})

    assert (ids.id_of("rs_engine", 0) == "rs_engine") == (include == [SEALED])
    assert ids.id_of("msg_engine", 0) == f"msg_{OWN}0000"
