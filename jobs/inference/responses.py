"""Responses: their objects in storage, and the translation of engines' answers.

The stored request has the whole conversation, so that a response can be continued when earlier turns were deleted. A
background response is a job whose input is this object.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import func, select

from jobs.inference.complete_answers import complete_event, complete_response
from jobs.inference.item_ids import OutputIds
from jobs.inference.stored import StoredAnswer
from jobs.inference.tables import StoredResponse
from jobs.ledger.kinds import Kind, Payload, StorageFolder
from jobs.requests.endpoints import RESPONSES

KIND: Final = "response"
PREFIX: Final = "resp_"
#: The terminal events of a background response. A response that was cut short ends with `INCOMPLETE` instead.
EVENTS: Final[dict[str, str]] = {
    "succeeded": "response.completed",
    "failed": "response.failed",
    "expired": "response.failed",
    "cancelled": "response.cancelled",
}
INCOMPLETE: Final = "response.incomplete"
#: The path of requests that count an input's tokens.
COUNT_URL: Final = f"{RESPONSES}/input_tokens"
#: The value of `include` for the results of file searches. They are stored in any case.
RESULTS: Final = "file_search_call.results"

#: Fields of a response that engines do not know.
_OWN_FIELDS: Final = ("id", "background", "conversation", "metadata", "previous_response_id", "store")

#: Those of OpenAI's error codes of responses that an engine's error may have.
CODES: Final = frozenset({"rate_limit_exceeded", "invalid_prompt", "server_error"})

#: The events that end a stream.
FINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_ATTEMPT: Final = 1_000_000


class Response(Payload):
    """Answer the one line of the input. With `stream` its events are published while it is answered."""

    stream: bool = False


RESPONSE: Final = Kind(
    KIND,
    "Background response",
    PREFIX,
    Response,
    EVENTS,
    {INCOMPLETE: PREFIX},
    resources=("responses",),
    permission="api.responses.write",
    counted=False,
    folders=(StorageFolder(StoredResponse.FOLDER, StoredResponse.id, flat=True),),
    stored_bytes={
        "responses": select(StoredResponse.project_id, func.sum(StoredResponse.bytes)).group_by(
            StoredResponse.project_id
        )
    },
    result=StoredResponse.id,
)


def event_number(epoch: int, n: int) -> int:
    """Return the sequence number of an event of a background attempt: above all numbers of earlier attempts."""
    return epoch * _ATTEMPT + n


def is_response(answer: Any) -> bool:
    """Return whether an engine's answer is a response: status 200 does not guarantee it."""
    output = answer.get("output") if isinstance(answer, dict) else None
    return isinstance(output, list) and all(
        isinstance(item, dict) and isinstance(item.get("type"), str) for item in output
    )


def error_of(error: Mapping[str, Any]) -> dict[str, str]:
    """Return an engine's error in the form that a response has."""
    code, message = error.get("code"), error.get("message")
    known = isinstance(code, str) and code in CODES
    return {"code": str(code) if known else "server_error", "message": str(message or "It failed.")}


def path(response_id: str) -> str:
    return f"{StoredResponse.FOLDER}/{response_id}"


def items(stored_answer: StoredAnswer) -> list[Any]:
    """Return the input that the model was shown, with earlier turns and without the messages of a prompt."""
    shown: list[Any] = stored_answer.request["input"]
    return shown[stored_answer.prompt_items :]


def drop_results(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a response, or an event of one, without the results of searches."""
    return _change_items(data, _drop_item_results)


def _drop_item_results(item: Any, _: int) -> Any:
    return {**item, "results": None} if isinstance(item, dict) and item.get("results") is not None else item


def _change_items(data: Mapping[str, Any], change: Callable[[Any, int], Any]) -> dict[str, Any]:
    """Return a response, or an event of one, with `change` applied to each item of the output and its index."""
    changed = dict(data)
    if isinstance(changed.get("output"), list):
        changed["output"] = [change(item, index) for index, item in enumerate(changed["output"])]
    if isinstance(changed.get("response"), dict):
        changed["response"] = _change_items(changed["response"], change)
    if "item" in changed:
        changed["item"] = change(changed["item"], _index(changed))
    return changed


def _index(event: Mapping[str, Any]) -> int:
    """Return the index in the output of the item that an event is about."""
    index = event.get("output_index")
    return index if isinstance(index, int) else 0


def to_public(
    answer: Mapping[str, Any], response: Mapping[str, Any], request: Mapping[str, Any], ended: int | None = None
) -> dict[str, Any]:
    """Return an engine's answer as this response, to the request `request`; see `complete_response`."""
    named = _change_items(complete_response(answer, request, ended), OutputIds.of(response, request).add_id)
    return _add_own_fields(named, response)


def to_public_event(
    event: Mapping[str, Any],
    response: Mapping[str, Any],
    request: Mapping[str, Any],
    ended: int | None = None,
    number: int = 0,
) -> dict[str, Any]:
    """Return an engine's event as one of this response, to the request `request`; see `complete_event`."""
    ids = OutputIds.of(response, request)
    public = _change_items(complete_event(event, request, number, ended), ids.add_id)
    if isinstance(public.get("item_id"), str):
        public["item_id"] = ids.id_of(public["item_id"], _index(public))
    if isinstance(public.get("response"), dict):
        public["response"] = _add_own_fields(public["response"], response)
    return public


def _add_own_fields(answer: Mapping[str, Any], response: Mapping[str, Any]) -> dict[str, Any]:
    prompt = {"prompt": response["prompt"]} if response.get("prompt") else {}
    return {**answer, **{name: response.get(name) for name in _OWN_FIELDS}, **prompt}
