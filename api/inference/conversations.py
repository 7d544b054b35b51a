"""Serve conversations: items that responses continue, stored until the client deletes them."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.http.bodies import Body, resource
from api.http.fields import Metadata
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, page
from api.http.space import check_space
from api.inference.item_references import resolve
from api.inference.schemas import ConversationDeleted, ConversationObject, ItemObject, NewItem, show_item
from api.inference.stored_conversations import add, begin, find, forget, get_conversation, no_item, read_page, remove

router: APIRouter = resource("Conversations", area="responses")

_MAX_AT_ONCE = 20  # OpenAI's limit


NewItems = Annotated[list[NewItem], Field(max_length=_MAX_AT_ONCE)]
_Include = Annotated[list[str] | None, Query(alias="include[]", description="Nothing there is to be added.")]


class CreateConversation(Body):
    items: NewItems | None = None
    metadata: Metadata | None = None


class UpdateConversation(Body):
    metadata: Metadata | None


class CreateItems(Body):
    items: Annotated[list[NewItem], Field(min_length=1, max_length=_MAX_AT_ONCE)]


class Added(BaseModel):
    """The value that an Idempotency-Key stores: the ids of items, which are stored in the conversation only."""

    ids: list[str]


@router.post("/conversations", response_model=ConversationObject)
def create_conversation(call: Call, once: Idempotent, body: CreateConversation) -> Response:
    """Create a conversation, empty or with items."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    check_space(call, 0)
    insert = begin(call, _new(call, body.items or ()), body.metadata or {})

    def make(session: Session) -> ConversationObject:
        conversation_id = insert(session)
        session.flush()
        return _show_conversation(get_conversation(session, call, conversation_id))

    return once.run(fields, make)


@router.get("/conversations/{conversation_id}")
def retrieve_conversation(call: Call, conversation_id: str) -> ConversationObject:
    """Return a conversation, without its items."""
    with call.db.read() as session:
        return _show_conversation(get_conversation(session, call, conversation_id))


@router.post("/conversations/{conversation_id}")
def update_conversation(call: Call, conversation_id: str, body: UpdateConversation) -> ConversationObject:
    """Replace the metadata."""
    with call.db.write() as session:
        row = get_conversation(session, call, conversation_id, lock=True)
        row.metadata_ = dict(body.metadata or {})
        call.record(session, "conversation.update", conversation_id)
        return _show_conversation(row)


@router.delete("/conversations/{conversation_id}")
def delete_conversation(call: Call, conversation_id: str) -> ConversationDeleted:
    """Delete a conversation and its items. Responses that continued it stay."""
    forget(call, conversation_id)
    return ConversationDeleted(id=conversation_id)


@router.post("/conversations/{conversation_id}/items")
def create_items(
    call: Call,
    once: Idempotent,
    conversation_id: str,
    body: CreateItems,
    include: _Include = None,  # noqa: ARG001
) -> Page[ItemObject]:
    """Append items."""
    fields = body.fields()
    answer = once.replay(fields)
    if answer is None:
        check_space(call, 0)

        def commit(apply: Callable[[Session], None], new: list[dict[str, Any]]) -> Response:
            def make(session: Session) -> Added:
                apply(session)
                call.record(session, "conversation.items.create", conversation_id, {"items": len(new)})
                return Added(ids=[item["id"] for item in new])

            return once.run(fields, make)

        answer = add(call, conversation_id, _new(call, body.items), commit)
    ids = Added.model_validate_json(bytes(answer.body)).ids
    shown = [ItemObject.model_validate(item) for item in find(call, conversation_id, ids)]
    return Page(data=shown, first_id=ids[0], last_id=ids[-1], has_more=False)


@router.get("/conversations/{conversation_id}/items")
def list_items(
    call: Call,
    conversation_id: str,
    after: After = None,
    limit: Limit20 = 20,
    order: Order = "desc",
    include: _Include = None,  # noqa: ARG001
) -> Page[ItemObject]:
    """List the items."""
    items, more = read_page(call, conversation_id, after=after, limit=limit, order=order)
    return page([ItemObject.model_validate(item) for item in items], more, lambda item: item)


@router.get("/conversations/{conversation_id}/items/{item_id}")
def retrieve_item(call: Call, conversation_id: str, item_id: str, include: _Include = None) -> ItemObject:  # noqa: ARG001
    """Return one item."""
    for item in find(call, conversation_id, [item_id]):
        return ItemObject.model_validate(item)
    raise no_item(item_id)


@router.delete("/conversations/{conversation_id}/items/{item_id}")
def delete_item(call: Call, conversation_id: str, item_id: str) -> ConversationObject:
    """Delete one item."""
    remove(call, conversation_id, item_id)
    return retrieve_conversation(call, conversation_id)


def _new(call: CallContext, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return items as they are stored, each with a new id in place of any id that the client gave it."""
    written = (show_item(item) for item in resolve(call, items, "items"))
    return [{name: value for name, value in item.items() if name != "id"} for item in written]


def _show_conversation(row: Any) -> ConversationObject:
    return ConversationObject(id=row.id, created_at=int(row.created_at), metadata=row.metadata_)
