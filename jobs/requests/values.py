"""The values that OpenAI's fields may have, and OpenAI's fields that ask for what no engine of a deployment does.

An engine behind a URL takes a value that it does not know, and answers another question than the one that was asked.
The API checks responses before they are stored; `workers.engines.caps` checks every request before its engine.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from jobs.requests.endpoints import CHAT, RESPONSES

_SHOWN: Final = 64  # characters of a wrong value, in the error text

#: The types of tools of a response. `workers.middleware.file_search` handles the second.
RESPONSE_TOOLS: Final = ("function", "file_search")
TRUNCATIONS: Final = ("auto", "disabled")
EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
SERVICE_TIERS: Final = ("auto", "default", "flex", "scale", "priority", "fast", "ultrafast")
INCLUDABLE: Final = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
)

#: Fields whose answer no engine gives.
_UNSERVED: Final[Mapping[str, tuple[str, ...]]] = {
    CHAT: ("audio", "function_call", "functions", "modalities", "moderation", "web_search_options"),
    RESPONSES: ("moderation",),
}
_INSTEAD: Final = {
    "functions": "; `tools` are",
    "function_call": "; `tool_choice` is",
}


Checked = Iterator[tuple[str, Any, tuple[str, ...]]]  # a parameter, its value, the values that it may have


class Objection(NamedTuple):
    """The error of a request, as OpenAI's errors say it."""

    message: str
    param: str
    code: str


def objection(url: str, body: Mapping[str, Any]) -> Objection | None:
    """Return the first thing that is wrong with the values of a request; None if nothing is."""
    for name in _UNSERVED.get(url, ()):
        if _asks(name, body):
            return Objection(f"{name} is not supported{_INSTEAD.get(name, '')}.", name, "unsupported_parameter")
    read = _ENUMS.get(url)
    for param, value, values in read(body) if read else ():
        if value is not None and value not in values:
            expected = ", ".join(f"'{name}'" for name in values) or "arrays"
            message = f"Invalid value: {_quote(value)}. Supported values are: {expected}."
            return Objection(message, param, "invalid_value")
    return None


def _asks(name: str, body: Mapping[str, Any]) -> bool:
    """Return whether the value asks for anything else than the default."""
    value = body.get(name)
    if name == "function_call" and not body.get("functions"):
        return value not in (None, "none", "auto")
    return value not in (None, [], ["text"])


def _chat_values(body: Mapping[str, Any]) -> Checked:
    yield "reasoning_effort", body.get("reasoning_effort"), EFFORTS
    yield "service_tier", body.get("service_tier"), SERVICE_TIERS


def _response_values(body: Mapping[str, Any]) -> Checked:
    yield "truncation", body.get("truncation"), TRUNCATIONS
    yield "service_tier", body.get("service_tier"), SERVICE_TIERS
    if isinstance(reasoning := body.get("reasoning"), dict):
        yield "reasoning.effort", reasoning.get("effort"), EFFORTS
    included = body.get("include")
    if isinstance(included, list):
        yield from ((f"include[{n}]", "null" if name is None else name, INCLUDABLE) for n, name in enumerate(included))
    elif included is not None:
        yield "include", included, ()


_ENUMS: Final[Mapping[str, Callable[[Mapping[str, Any]], Checked]]] = {CHAT: _chat_values, RESPONSES: _response_values}


def _quote(value: Any) -> str:
    if isinstance(value, list | dict):
        return "an array" if isinstance(value, list) else "an object"
    return repr(value)[:_SHOWN]
