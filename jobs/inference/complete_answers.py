"""Complete the answers of engines with fields of the request, and with OpenAI's defaults.

Servers leave out many fields that OpenAI's API always sends, and strict clients cannot parse an answer without them.
The fields that the engine sent stay, but for those that OpenAI repeats from the request: engines name the room that is
left in their context as `max_output_tokens`, or send `tools` without a `strict`. Completing an answer twice is the same
as completing it once.

`asked` is the body of the request in each function, and `whole` is what fills the gaps of an answer.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from jobs.clock import now
from jobs.ids import new_id
from jobs.inference.item_ids import prefix_of

Body = Mapping[str, Any]

#: Fields that a response repeats from its request, and OpenAI's defaults.
_REPEATED: Final[Body] = {
    "frequency_penalty": 0.0,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "service_tier": "auto",
    "temperature": 1.0,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
#: Fields of which the request's value, or OpenAI's default, replaces the engine's.
_AS_ASKED: Final = ("max_output_tokens", "parallel_tool_calls", "text", "tool_choice", "tools")
#: Fields that engines do not know: the request's value replaces the engine's.
_CLIENTS_OWN: Final = ("prompt_cache_key", "safety_identifier", "user")
_FUNCTION: Final[Body] = {"description": None, "parameters": None, "strict": None}

_ITEMS: Final[Mapping[str, Callable[[str], Body]]] = {
    "message": lambda status: {"status": status, "role": "assistant", "content": []},
    "function_call": lambda status: {"status": status, "arguments": ""},
    "reasoning": lambda _: {"summary": []},
}
#: The type of the item that an event is about, by the second word of its type: `response.output_text.delta`.
_ABOUT: Final[Mapping[str, str]] = {
    "output_text": "message", "refusal": "message", "content_part": "message",
    "function_call_arguments": "function_call",
    "reasoning_text": "reasoning", "reasoning_summary_part": "reasoning", "reasoning_summary_text": "reasoning",
}  # fmt: skip
#: Events about one part of an item, which have a `content_index`.
_IN_PARTS: Final = frozenset({"output_text", "refusal", "content_part", "reasoning_text"})
#: Words of `response.…` events that are also the status of the response.
_ENDS: Final = frozenset({"completed", "incomplete", "failed", "queued"})


def request_echo(request: Body) -> dict[str, Any]:
    """Return the fields that a response repeats from its request."""
    repeated = {name: request[name] if request.get(name) is not None else value for name, value in _REPEATED.items()}
    reasoning, tools = request.get("reasoning"), request.get("tools")
    return repeated | {
        "reasoning": {"effort": None, "summary": None, **(reasoning if isinstance(reasoning, dict) else {})},
        "text": text_of(request),
        "tools": [_complete_tool(tool) for tool in tools] if isinstance(tools, list) else [],
    }


def text_of(request: Body) -> dict[str, Any]:
    """Return the text format that a request asks for."""
    given = request.get("text")
    text_format = {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else {}
    return {"format": {"type": "text"}, **text_format}


def new_response(request: Body, status: str) -> dict[str, Any]:
    """Return the response to a request that no engine has begun: each field has the request's value or its default."""
    return {
        "object": "response",
        "created_at": int(now()),
        "status": status,
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "metadata": request.get("metadata") or {},
        "model": request.get("model"),
        "output": [],
        "previous_response_id": None,
        "usage": None,
        **request_echo(request),
    }


def complete_response(
    answer: Body, request: Body, ended: int | None = None, status: str = "completed"
) -> dict[str, Any]:
    """Return an engine's answer as a complete response. It ended at `ended`, in unix seconds, or now.

    `status` is used for an answer without one.
    """
    whole = new_response(request, status)
    completed = _fill(answer, whole)
    completed |= {name: whole[name] for name in _AS_ASKED}
    completed |= {name: request[name] for name in _CLIENTS_OWN if request.get(name) is not None}
    if not isinstance(completed.get("id"), str):
        completed["id"] = new_id("resp_")
    if completed["status"] == "completed" and completed["completed_at"] is None:
        completed["completed_at"] = int(now()) if ended is None else ended
    if isinstance(completed["output"], list):
        completed["output"] = [complete_item(item, str(completed["status"])) for item in completed["output"]]
    if isinstance(completed["usage"], dict):
        completed["usage"] = _complete_usage(completed["usage"])
    return completed


def complete_item(item: Any, status: str) -> Any:
    """Return a complete item of an output, with the `status` of its response."""
    kind = item.get("type") if isinstance(item, dict) else None
    if not isinstance(kind, str):
        return item
    completed = _fill(item, _ITEMS[kind](status) if kind in _ITEMS else {})
    if not isinstance(completed.get("id"), str):
        completed["id"] = new_id(f"{prefix_of(kind)}_")
    if isinstance(completed.get("content"), list):
        completed["content"] = [complete_part(part) for part in completed["content"]]
    return completed


def complete_part(part: Any) -> Any:
    """Return a complete part of a message."""
    is_text = isinstance(part, dict) and part.get("type") == "output_text"
    return _fill(part, {"annotations": [], "logprobs": []}) if is_text else part


def complete_event(event: Body, request: Body, number: int, ended: int | None = None) -> dict[str, Any]:
    """Return a complete event of a response's stream.

    `number` is its index in a stream without numbers. The response ended at `ended`, in unix seconds, or now.
    """
    _, subject, step = f"{event.get('type')}..".split(".", 3)[:3]
    completed = _fill(event, {"sequence_number": number})
    if isinstance(completed.get("response"), dict):
        completed["response"] = complete_response(completed["response"], request, ended, status_of(event))
    if isinstance(completed.get("item"), dict):
        location = {"id": f"{prefix_of(str(completed['item'].get('type')))}_{completed.setdefault('output_index', 0)}"}
        completed["item"] = complete_item(
            _fill(completed["item"], location), "completed" if step == "done" else "in_progress"
        )
    if "part" in completed:
        completed["part"] = complete_part(completed["part"])
    if subject in _ABOUT:
        completed = _fill(completed, {"output_index": 0} | ({"content_index": 0} if subject in _IN_PARTS else {}))
        completed.setdefault("item_id", f"{prefix_of(_ABOUT[subject])}_{completed['output_index']}")
    if subject == "output_text" and step in ("delta", "done"):
        completed = _fill(completed, {"logprobs": []})
    return completed


def status_of(event: Body) -> str:
    """Return the status that the type of an event stands for."""
    subject = str(event.get("type")).removeprefix("response.")
    return subject if subject in _ENDS else "in_progress"


def complete_chat(answer: Body, request: Body) -> dict[str, Any]:
    """Return an engine's answer as a complete chat completion."""
    whole = {"object": "chat.completion", "created": int(now()), "model": request.get("model")}
    completed = _fill(answer, whole | ({} if answer.get("id") else {"id": new_id("chatcmpl-")}))
    completed["choices"] = [_complete_choice(choice, index) for index, choice in enumerate(completed["choices"])]
    return completed


def _complete_choice(choice: Body, index: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "refusal": None} | dict(choice["message"])
    reason = "tool_calls" if message.get("tool_calls") else "stop"
    completed = _fill(choice, {"index": index, "finish_reason": reason, "logprobs": None})
    return completed | {"message": message}


def _complete_tool(tool: Any) -> Any:
    is_function = isinstance(tool, dict) and tool.get("type") == "function"
    return {**_FUNCTION, **tool} if is_function else tool


def _complete_usage(usage: Body) -> dict[str, Any]:
    inputs, outputs = (_count(usage.get(name)) for name in ("input_tokens", "output_tokens"))
    details = {"input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
               "output_tokens_details": {"reasoning_tokens": 0}}  # fmt: skip
    completed = _fill(usage, {"input_tokens": inputs, "output_tokens": outputs, "total_tokens": inputs + outputs})
    for name, whole in details.items():
        given = completed.get(name)
        completed[name] = _fill(given, whole) if isinstance(given, dict) else whole
    return completed


def _count(value: Any) -> int:
    """Return a server's number of tokens; 0 for a value that is not a number."""
    return value if isinstance(value, int) else 0


def _fill(given: Body, whole: Body) -> dict[str, Any]:
    """Fill fields that are missing or null from `whole`."""
    filled = dict(given)
    for name, value in whole.items():
        if filled.get(name) is None:
            filled[name] = value
    return filled
