"""Make and read the ids of stored items, each of which names the response or conversation that stores the item.

    msg_<24 characters of resp_…><index>      an item of the output of a response; the prefix is the engine's
    item_<24 characters of resp_…><index>     an item of its input that came without an id
    msg_<24 characters of conv_…><the rest>   an item of a conversation

Clients refer to an item by its id alone (`item_reference`), so the id must lead to the item.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from jobs.ids import LENGTH, new_id

#: The value of `include` for encrypted reasoning, which contains the id of its item.
SEALED: Final = "reasoning.encrypted_content"
_SEALED_PREFIX: Final = "rs"
_INPUT_PREFIX: Final = "item"
_PREFIX: Final = re.compile(r"([a-z]{1,8})_")
#: Prefixes for items without an id of their engine.
_PREFIXES: Final[Mapping[str, str]] = {
    "message": "msg", "reasoning": "rs", "function_call": "fc", "file_search_call": "fs",
}  # fmt: skip
_OTHER: Final = "out"


def prefix_of(kind: str) -> str:
    """Return the prefix of an item's id, by the type of the item."""
    return _PREFIXES.get(kind, _OTHER)


def owner_of(item_id: str) -> str:
    """Return the owner that an item's id names: the id of a response or a conversation without the prefix."""
    return _name(item_id)[:LENGTH]


def input_item_id(response_id: str, index: int) -> str:
    """Return the id of an item in the input of a response."""
    return f"{_INPUT_PREFIX}_{_name(response_id)}{index:04x}"


def new_conversation_item_id(conversation_id: str, item: Mapping[str, Any]) -> str:
    """Return a new id for an item of a conversation."""
    prefix = "msg" if item["type"] == "message" else _INPUT_PREFIX
    return new_id(f"{prefix}_{_name(conversation_id)}")


@dataclass(frozen=True, slots=True)
class OutputIds:
    """The ids of the items in the output of one response."""

    owner: str
    sealed: bool

    @classmethod
    def of(cls, response: Mapping[str, Any], request: Mapping[str, Any]) -> "OutputIds":
        """Return the ids for a response to the request `request`.

        Without `store`, items are named after the conversation.
        """
        include, conversation, own = request.get("include"), response.get("conversation"), _name(response["id"])
        owner = _name(conversation["id"]) + own if conversation and not response["store"] else own
        return cls(owner, isinstance(include, list) and SEALED in include)

    def add_id(self, item: Any, index: int) -> Any:
        """Return an item of the output with its id."""
        if not isinstance(item, dict):
            return item
        given = item.get("id")
        if not isinstance(given, str):
            given = f"{prefix_of(str(item.get('type')))}_"
        return {**item, "id": self.id_of(given, index)}

    def id_of(self, given: str, index: int) -> str:
        """Return the id of the item that an engine calls `given`."""
        match = _PREFIX.match(given)
        prefix = match[1] if match and match[1] != _INPUT_PREFIX else _OTHER
        if self.sealed and prefix == _SEALED_PREFIX:
            return given
        return f"{prefix}_{self.owner}{index:04x}"


def _name(any_id: str) -> str:
    return any_id.rpartition("_")[2]
