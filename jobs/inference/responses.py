"""Responses: where one that is kept lies, and what of it is ours.

The question that is kept holds the whole conversation, so that it can be continued whatever became of the turns
before; and a response that is asked for in the background is a job whose input is this very object.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from jobs.inference.complete_answers import complete_event, complete_response
from jobs.inference.item_ids import OutputIds
from jobs.inference.stored import StoredAnswer
from jobs.inference.tables import StoredResponse
from jobs.ledger.kinds import Folder, Kind, Payload
from jobs.requests.endpoints import RESPONSES

KIND: Final = "response"
#: The terminal events of a response in the background. One that was cut short ends with `INCOMPLETE` instead.
EVENTS: Final[dict[str, str]] = {
    "succeeded": "response.completed",
    "failed": "response.failed",
    "expired": "response.failed",
    "cancelled": "response.cancelled",
}
INCOMPLETE: Final = "response.incomplete"
#: Where it is asked how long an input is.
COUNT_URL: Final = f"{RESPONSES}/input_tokens"
#: Of `include`: what the searches in files found. It is kept with a response in any case.
RESULTS: Final = "file_search_call.results"

#: What an engine's answer does not know.
_OWN_FIELDS: Final = ("id", "background", "conversation", "metadata", "previous_response_id", "store")

#: Of OpenAI's codes of a response's error those that say as much as an engine's may.
CODES: Final = frozenset({"rate_limit_exceeded", "invalid_prompt", "server_error"})

#: The events that end a stream.
FINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_ATTEMPT: Final = 1_000_000


class Response(Payload):
    """Answer the one line of the input. With `stream` its events are published while it is answered."""

    stream: bool = False


RESPONSE: Final = Kind(
    KIND,
    "resp_",
    Response,
    EVENTS,
    (INCOMPLETE,),
    counted=False,
    retryable=False,
    folders=(Folder(StoredResponse.FOLDER, StoredResponse.id, flat=True),),
    result=StoredResponse.id,
)


def numbered(epoch: int, n: int) -> int:
    """The number of an event of an attempt in the background: above all of the attempts before."""
    return epoch * _ATTEMPT + n


def is_response(answer: Any) -> bool:
    """Whether an engine's answer is a response: what else comes with status 200 is none."""
    output = answer.get("output") if isinstance(answer, dict) else None
    return isinstance(output, list) and all(
        isinstance(item, dict) and isinstance(item.get("type"), str) for item in output
    )


def error_of(told: Mapping[str, Any]) -> dict[str, str]:
    """An engine's error as a response shows it."""
    code, message = told.get("code"), told.get("message")
    known = isinstance(code, str) and code in CODES
    return {"code": str(code) if known else "server_error", "message": str(message or "It failed.")}


def path(response_id: str) -> str:
    return f"{StoredResponse.FOLDER}/{response_id}"


def items(stored_answer: StoredAnswer) -> list[Any]:
    """The input as the model is shown it, earlier turns included."""
    found: list[Any] = stored_answer.question["input"]
    return found


def without_results(told: Mapping[str, Any]) -> dict[str, Any]:
    """A response, or an event of one, without what searches found."""
    return _changed(told, _without_results)


def _without_results(item: Any, _: int) -> Any:
    return {**item, "results": None} if isinstance(item, dict) and item.get("results") is not None else item


def _changed(told: Mapping[str, Any], change: Callable[[Any, int], Any]) -> dict[str, Any]:
    """Return a response, or an event of one, with what `change` makes of each item of the output and its index."""
    shown = dict(told)
    if isinstance(shown.get("output"), list):
        shown["output"] = [change(item, index) for index, item in enumerate(shown["output"])]
    if isinstance(shown.get("response"), dict):
        shown["response"] = _changed(shown["response"], change)
    if "item" in shown:
        shown["item"] = change(shown["item"], _index(shown))
    return shown


def _index(event: Mapping[str, Any]) -> int:
    """Return the place in the output of the item that an event is about."""
    index = event.get("output_index")
    return index if isinstance(index, int) else 0


def to_public(
    answer: Mapping[str, Any], response: Mapping[str, Any], asked: Mapping[str, Any], ended: int | None = None
) -> dict[str, Any]:
    """Return an engine's answer as the answer to this response, which was asked for so; see `complete_response`."""
    named = _changed(complete_response(answer, asked, ended), OutputIds.of(response, asked).named)
    return _with_own_fields(named, response)


def to_public_event(
    event: Mapping[str, Any],
    response: Mapping[str, Any],
    asked: Mapping[str, Any],
    ended: int | None = None,
    number: int = 0,
) -> dict[str, Any]:
    """Return an engine's event as one of this response, which was asked for so; see `complete_event`."""
    ids = OutputIds.of(response, asked)
    told = _changed(complete_event(event, asked, number, ended), ids.named)
    if isinstance(told.get("item_id"), str):
        told["item_id"] = ids.id_of(told["item_id"], _index(told))
    if isinstance(told.get("response"), dict):
        told["response"] = _with_own_fields(told["response"], response)
    return told


def _with_own_fields(told: Mapping[str, Any], response: Mapping[str, Any]) -> dict[str, Any]:
    return {**told, **{name: response.get(name) for name in _OWN_FIELDS}}
