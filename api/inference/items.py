"""Items of an input: what we rely on of them. The rest is the engine's to judge."""

from typing import Annotated, Any

from pydantic import AfterValidator

from jobs.inference import compaction


def _typed(item: dict[str, Any]) -> dict[str, Any]:
    if item.get("type") is not None and not isinstance(item["type"], str):
        raise ValueError("An item's type is a string.")
    if item.get("type") == "item_reference":  # no engine has what was said before
        raise ValueError("An item_reference is not supported: send the item, or go on from what has it.")
    if compaction.is_compaction(item):
        compaction.unpacked(item.get(compaction.CONTENT))
    return item


def _whole(item: dict[str, Any]) -> dict[str, Any]:
    message = (item.get("type") or "message") == "message"
    if message and not (isinstance(item.get("role"), str) and isinstance(item.get("content"), str | list)):
        raise ValueError("A message has a role and a content.")
    return item


#: Of a question, as clients write it down: a message need not say that it is one.
InputItem = Annotated[dict[str, Any], AfterValidator(_typed)]
#: Of a conversation, which is kept before anybody judges it.
NewItem = Annotated[InputItem, AfterValidator(_whole)]
