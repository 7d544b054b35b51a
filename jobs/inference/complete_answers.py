"""Complete the answers of engines: with what was asked, and with OpenAI's defaults.

Servers leave out much of what OpenAI's API always says, and strict clients do not parse what is left. What an engine
says stays, but for what it says of its own limits in place of what was asked: vLLM gives the room in its context as
`max_output_tokens`, and neither an error nor the time of its end. To complete an answer twice is to do it once.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from jobs.clock import now
from jobs.ids import new_id
from jobs.inference.item_ids import prefix_of

Body = Mapping[str, Any]

#: What a response repeats of its request, and OpenAI's defaults.
_REPEATED: Final[Body] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "parallel_tool_calls": True,
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
#: The same, where the request says more than the engine: engines know nothing of these.
_CLIENTS_OWN: Final = ("prompt_cache_key", "safety_identifier", "user")
_FUNCTION: Final[Body] = {"description": None, "parameters": None, "strict": None}

_ITEMS: Final[Mapping[str, Callable[[str], Body]]] = {
    "message": lambda status: {"status": status, "role": "assistant", "content": []},
    "function_call": lambda status: {"status": status, "arguments": ""},
    "reasoning": lambda _: {"summary": []},
}
#: What kind of item an event is about.
_ABOUT: Final[Mapping[str, str]] = {
    "output_text": "message", "refusal": "message", "content_part": "message",
    "function_call_arguments": "function_call",
    "reasoning_text": "reasoning", "reasoning_summary_part": "reasoning", "reasoning_summary_text": "reasoning",
}  # fmt: skip
_IN_PARTS: Final = frozenset({"output_text", "refusal", "content_part", "reasoning_text"})
_ENDS: Final = frozenset({"completed", "incomplete", "failed", "queued"})


def request_echo(asked: Body) -> dict[str, Any]:
    """Return what a response repeats of its request."""
    repeated = {name: asked[name] if asked.get(name) is not None else value for name, value in _REPEATED.items()}
    reasoning, tools = asked.get("reasoning"), asked.get("tools")
    return repeated | {
        "reasoning": {"effort": None, "summary": None, **(reasoning if isinstance(reasoning, dict) else {})},
        "text": text_of(asked),
        "tools": [_complete_tool(tool) for tool in tools] if isinstance(tools, list) else [],
    }


def text_of(asked: Body) -> dict[str, Any]:
    """Return the format that a request asks its text in."""
    given = asked.get("text")
    told = {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else {}
    return {"format": {"type": "text"}, **told}


def new_response(asked: Body, status: str) -> dict[str, Any]:
    """Return a response to a request that no engine has worked on."""
    return {
        "object": "response",
        "created_at": int(now()),
        "status": status,
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "metadata": asked.get("metadata") or {},
        "model": asked.get("model"),
        "output": [],
        "previous_response_id": None,
        "usage": None,
        **request_echo(asked),
    }


def complete_response(answer: Body, asked: Body, ended: int | None = None, status: str = "completed") -> dict[str, Any]:
    """Return the whole response that an engine's answer is; it ended at `ended`, in seconds, or now.

    `status` is that of an answer which does not say it.
    """
    whole = new_response(asked, status)
    told = _filled(answer, whole)
    told |= {name: whole[name] for name in ("max_output_tokens", "text")}
    told |= {name: asked[name] for name in _CLIENTS_OWN if asked.get(name) is not None}
    if not isinstance(told.get("id"), str):
        told["id"] = new_id("resp_")
    if told["status"] == "completed" and told["completed_at"] is None:
        told["completed_at"] = int(now()) if ended is None else ended
    if isinstance(told["output"], list):
        told["output"] = [complete_item(item, str(told["status"])) for item in told["output"]]
    if isinstance(told["usage"], dict):
        told["usage"] = _complete_usage(told["usage"])
    return told


def complete_item(item: Any, status: str) -> Any:
    """Return an item of an output with all that it needs; it has the `status` of its response."""
    kind = item.get("type") if isinstance(item, dict) else None
    if not isinstance(kind, str):
        return item
    told = _filled(item, _ITEMS[kind](status) if kind in _ITEMS else {})
    if not isinstance(told.get("id"), str):
        told["id"] = new_id(f"{prefix_of(kind)}_")
    if isinstance(told.get("content"), list):
        told["content"] = [complete_part(part) for part in told["content"]]
    return told


def complete_part(part: Any) -> Any:
    """Return a part of a message with all that it needs."""
    is_text = isinstance(part, dict) and part.get("type") == "output_text"
    return _filled(part, {"annotations": [], "logprobs": []}) if is_text else part


def complete_event(event: Body, asked: Body, number: int, ended: int | None = None) -> dict[str, Any]:
    """Return an event of a response's stream with all that it needs.

    `number` is its place in a stream without numbers; the response ended at `ended`, in seconds, or now.
    """
    _, subject, step = f"{event.get('type')}..".split(".", 3)[:3]
    told = _filled(event, {"sequence_number": number})
    if isinstance(told.get("response"), dict):
        told["response"] = complete_response(told["response"], asked, ended, status_of(event))
    if isinstance(told.get("item"), dict):
        location = {"id": f"{prefix_of(str(told['item'].get('type')))}_{told.setdefault('output_index', 0)}"}
        told["item"] = complete_item(_filled(told["item"], location), "completed" if step == "done" else "in_progress")
    if "part" in told:
        told["part"] = complete_part(told["part"])
    if subject in _ABOUT:
        told = _filled(told, {"output_index": 0} | ({"content_index": 0} if subject in _IN_PARTS else {}))
        told.setdefault("item_id", f"{prefix_of(_ABOUT[subject])}_{told['output_index']}")
    if subject == "output_text" and step in ("delta", "done"):
        told = _filled(told, {"logprobs": []})
    return told


def status_of(event: Body) -> str:
    """Return the status of the response in an event, which says it by its name."""
    subject = str(event.get("type")).removeprefix("response.")
    return subject if subject in _ENDS else "in_progress"


def complete_chat(answer: Body, asked: Body) -> dict[str, Any]:
    """Return the whole chat completion that an engine's answer is."""
    whole = {"object": "chat.completion", "created": int(now()), "model": asked.get("model")}
    told = _filled(answer, whole | ({} if answer.get("id") else {"id": new_id("chatcmpl-")}))
    told["choices"] = [_complete_choice(choice, index) for index, choice in enumerate(told["choices"])]
    return told


def _complete_choice(choice: Body, index: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "refusal": None} | dict(choice["message"])
    reason = "tool_calls" if message.get("tool_calls") else "stop"
    told = _filled(choice, {"index": index, "finish_reason": reason, "logprobs": None})
    return told | {"message": message}


def _complete_tool(tool: Any) -> Any:
    is_function = isinstance(tool, dict) and tool.get("type") == "function"
    return {**_FUNCTION, **tool} if is_function else tool


def _complete_usage(usage: Body) -> dict[str, Any]:
    inputs, outputs = (_count(usage.get(name)) for name in ("input_tokens", "output_tokens"))
    details = {"input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
               "output_tokens_details": {"reasoning_tokens": 0}}  # fmt: skip
    told = _filled(usage, {"input_tokens": inputs, "output_tokens": outputs, "total_tokens": inputs + outputs})
    for name, whole in details.items():
        given = told.get(name)
        told[name] = _filled(given, whole) if isinstance(given, dict) else whole
    return told


def _count(value: Any) -> int:
    """Return a number of tokens as a server says it; 0 for what is no number."""
    return value if isinstance(value, int) else 0


def _filled(said: Body, whole: Body) -> dict[str, Any]:
    """Return what is said, and of `whole` what is not said or null."""
    told = dict(said)
    for name, value in whole.items():
        if told.get(name) is None:
            told[name] = value
    return told
