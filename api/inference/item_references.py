"""Replace references to stored items in an input: `{"type": "item_reference", "id": "msg_…"}`.

A client whose history is stored may refer to each item of it in every turn. The last reference is looked up first: the
response or conversation that stores its item usually has the earlier items too.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Any, Final

import msgspec

from api import shares
from api.deps import CallContext
from api.errors import clip
from api.inference import stored_answers, stored_conversations
from api.inference.schemas import is_reference, show_items, to_input
from jobs.errors import InvalidRequest, NotFound
from jobs.inference import responses
from jobs.inference.item_ids import owner_of

#: Limit of the responses and conversations that are read for one input.
_MAX_READ: Final = 100

Items = dict[str, dict[str, Any]]  # by id


def resolve(call: CallContext, items: Sequence[dict[str, Any]], param: str = "input") -> list[dict[str, Any]]:
    """Return an input with the items that it refers to. Raises InvalidRequest, ProjectBusy."""
    ids = [item["id"] for item in items if is_reference(item)]
    if not ids:
        return list(items)
    items_by_id = _find(call, ids, param)
    return [items_by_id[item["id"]] if is_reference(item) else item for item in items]


def _find(call: CallContext, ids: Sequence[str], param: str) -> Items:
    left = dict.fromkeys(ids)
    if len(left) < len(ids):
        [(twice, _)] = Counter(ids).most_common(1)
        raise InvalidRequest(f"Duplicate item found with id '{clip(twice)}'. Refer to an item once.", param=param)
    resolved: Items = {}
    reads = 0
    while left:
        reads += 1
        if reads > _MAX_READ:
            message = f"The items referred to are stored in more than {_MAX_READ} responses and conversations."
            raise InvalidRequest(message, param=param, code="too_many_values")
        next_id = next(reversed(left))
        items = _load_items(call, next_id, left)
        if next_id not in items:
            raise InvalidRequest(f"Item with id '{clip(next_id)}' not found.", param=param)
        resolved |= {item_id: to_input(item) for item_id, item in items.items()}
        for item_id in items:
            del left[item_id]
    return resolved


def _load_items(call: CallContext, item_id: str, requested: Collection[str]) -> Items:
    """Return the requested items that are stored with one of them; none where it is not stored."""
    owner = owner_of(item_id)
    try:
        return _response_items(call, f"resp_{owner}", requested)
    except NotFound:
        return _conversation_items(call, f"conv_{owner}", requested)


def _response_items(call: CallContext, response_id: str, requested: Collection[str]) -> Items:
    """Return the items of a response. Raises NotFound."""
    stored_answer = stored_answers.load_response(call, response_id, reserve=True)
    items = chain(
        show_items(response_id, responses.items(stored_answer)),
        responses.drop_results(stored_answer.response)["output"],
    )
    return _select_items(items, requested)


def _conversation_items(call: CallContext, conversation_id: str, requested: Collection[str]) -> Items:
    try:
        items = stored_conversations.find(call, conversation_id, requested)
    except NotFound:
        return {}
    shares.reserve(len(msgspec.json.encode(items)))
    return _select_items(items, requested)


def _select_items(items: Iterable[dict[str, Any]], requested: Collection[str]) -> Items:
    return {item["id"]: item for item in items if item.get("id") in requested}
