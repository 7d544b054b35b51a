"""Chat completions that are kept: listed, fetched, labelled, deleted. They are made by `generation`."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from api.deps import Call
from api.http.bodies import Body
from api.http.fields import Metadata
from api.http.paging import After, Limit20, Order, Page, slice_of
from api.http.resource import resource
from api.inference import completions
from api.inference.completion_schemas import CompletionDeleted, CompletionObject, StoredMessage, show_messages

router: APIRouter = resource("Chat completions")


class UpdateCompletion(Body):
    metadata: Metadata | None


@router.get("/chat/completions")
def list_chat_completions(
    request: Request,
    call: Call,
    after: After = None,
    limit: Limit20 = 20,
    order: Order = "asc",
    model: Annotated[
        str | None, Query(max_length=255, description="As it was asked for, or as the answer names it.")
    ] = None,
) -> Page[CompletionObject]:
    """Those that are kept, the oldest first. `metadata[key]=value` selects, up to 16 times."""
    query = request.query_params.multi_items()
    found, more = completions.listed(call, model, query, after=after, limit=limit, order=order)
    shown = [_shown(one) for one in found]
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    return Page(data=shown, first_id=first, last_id=last, has_more=more)


@router.get("/chat/completions/{completion_id}")
def retrieve_chat_completion(call: Call, completion_id: str) -> CompletionObject:
    """One that is kept, as it was answered."""
    return _shown(completions.load(call, completion_id).response)


@router.post("/chat/completions/{completion_id}")
def update_chat_completion(call: Call, completion_id: str, body: UpdateCompletion) -> CompletionObject:
    """Its metadata alone."""
    return _shown(completions.relabel(call, completion_id, body.metadata or {}))


@router.delete("/chat/completions/{completion_id}")
def delete_chat_completion(call: Call, completion_id: str) -> CompletionDeleted:
    """Forget one, and what was asked."""
    completions.forget(call, completion_id)
    return CompletionDeleted(id=completion_id)


@router.get("/chat/completions/{completion_id}/messages")
def list_messages(
    call: Call, completion_id: str, after: After = None, limit: Limit20 = 20, order: Order = "asc"
) -> Page[StoredMessage]:
    """What the model was asked."""
    messages = completions.load(call, completion_id).question["messages"]
    shown = show_messages(completion_id, messages)
    return slice_of(shown, StoredMessage.model_validate, after=after, limit=limit, order=order)


def _shown(completion: dict[str, Any]) -> CompletionObject:
    return CompletionObject.model_validate(completion)
