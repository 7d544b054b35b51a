"""The field `context` of a request: what is to be done if its prompt is too long. It is ours, and judged by us."""

import inspect
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from jobs.errors import InvalidRequest
from jobs.requests.endpoints import CHAT, COMPLETIONS, RESPONSES

FIELD: Final = "context"
#: Where a prompt is, by what it is asked of.
PROMPT: Final = {CHAT: "messages", RESPONSES: "input", COMPLETIONS: "prompt"}
PRIORITY: Final = "priority"  # a message's own, which is ours and no engine's
_MOST_PRIORITY: Final = 1_000_000
#: Of the context, for the answer, where the request does not say how long it may be: a quarter, and at most so much.
MOST_RESERVED: Final = 1024

Strategy = Literal[
    "truncate_middle", "sliding_window", "priority", "key_facts", "rotate", "memory", "summarize"
]  # fmt: skip
_Turns = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
_Tokens = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_PATH_IN_ERROR: Final = re.compile(r" - at `\$\.?(.*)`$")
_UNKNOWN: Final = re.compile(r"unknown field `(.*)`")
#: What only some strategies read.
_OWN: Final = {"keep_first": "rotate", "summary_tokens": "summarize", "embedding_model": "memory"}


class ContextOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done if the prompt is too long: a `strategy`, a model to `route_long` to, or both. Without it the request
    is refused. `keep_last` turns stay as they are, and what is said as system or developer. `max_tokens` are the
    prompt's; `keep_first` is of `rotate`, `summary_tokens` of `summarize`, `embedding_model` of `memory`.
    """

    strategy: Strategy | None = None
    keep_last: _Turns | None = None
    max_tokens: _Tokens | None = None
    route_long: _Name | None = None
    keep_first: _Turns | None = None
    summary_tokens: Annotated[int, msgspec.Meta(ge=16, le=8192)] | None = None
    embedding_model: _Name | None = None

    @property
    def kept_turns(self) -> int:
        """A question is no question without its last turn; only cut it may be, where nothing is said."""
        if self.keep_last is not None:
            return self.keep_last
        return 0 if self.strategy == "truncate_middle" else 1


#: OpenAI's own `truncation: auto`, of responses.
AUTO: Final = ContextOptions()


def context_options_of(url: str, body: Mapping[str, Any]) -> ContextOptions | None:
    """None where nothing is asked for. Raises InvalidRequest, also for a message's priority."""
    terms = _asked(url, body) if url in PROMPT else None
    if terms is not None:
        _check_priorities(url, body)
    return terms


def without_context_fields(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The request without what is ours of its messages: earlier turns may have it where this one asks for nothing."""
    given = body.get(PROMPT[url]) if url in PROMPT else None
    if not isinstance(given, list) or not any(isinstance(item, dict) and PRIORITY in item for item in given):
        return body
    return {**body, PROMPT[url]: [_without_priority(item) for item in given]}


def _without_priority(item: Any) -> Any:
    return {name: value for name, value in item.items() if name != PRIORITY} if isinstance(item, dict) else item


def schema() -> dict[str, Any]:
    """The field as JSON Schema says it."""
    _, named = msgspec.json.schema_components([ContextOptions])
    return {**named[ContextOptions.__name__], "title": "Context", "description": inspect.getdoc(ContextOptions)}


def _asked(url: str, body: Mapping[str, Any]) -> ContextOptions | None:
    given = body.get(FIELD)
    if given is None:
        return AUTO if url == RESPONSES and body.get("truncation") == "auto" else None
    if url not in (CHAT, RESPONSES):
        raise InvalidRequest(f"'{FIELD}' is for chats and responses.", param=FIELD, code="unsupported_parameter")
    try:
        terms = msgspec.convert(given, ContextOptions)
    except msgspec.ValidationError as error:
        raise _refused(str(error)) from error
    _check(terms)
    return terms


def reserved(body: Mapping[str, Any], limit: int) -> int:
    """Tokens of a context that are the answer's."""
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        asked = body.get(name)
        if isinstance(asked, int) and asked > 0:
            return asked
    return min(MOST_RESERVED, limit // 4)


def _check(terms: ContextOptions) -> None:
    if terms.strategy is None and terms.route_long is None:
        raise _bad("strategy", "Say which strategy, or a model to 'route_long' to.", "missing_required_parameter")
    if terms.keep_last == 0 and terms.strategy != "truncate_middle":
        raise _bad("keep_last", "The last turn stays: 'keep_last' is 1 or more.")
    for name, strategy in _OWN.items():
        if getattr(terms, name) is not None and terms.strategy != strategy:
            raise _bad(name, f"'{name}' belongs to the strategy '{strategy}'.")


def _check_priorities(url: str, body: Mapping[str, Any]) -> None:
    given = body.get(PROMPT[url])
    for item in given if isinstance(given, list) else ():
        value = item.get(PRIORITY, 0) if isinstance(item, dict) else 0
        if type(value) not in (int, float) or not abs(value) <= _MOST_PRIORITY:
            message = f"A '{PRIORITY}' is a number between -{_MOST_PRIORITY:,} and {_MOST_PRIORITY:,}."
            raise InvalidRequest(message, param=PROMPT[url], code="invalid_type")


def _refused(told: str) -> InvalidRequest:
    """What msgspec says, at the field that it says it of."""
    location, unknown = _PATH_IN_ERROR.search(told), _UNKNOWN.search(told)
    name = unknown.group(1)[:64] if unknown else location.group(1) if location else ""
    return _bad(name, _PATH_IN_ERROR.sub("", told)[:200] + ".", "unknown_parameter" if unknown else "invalid_value")


def _bad(name: str, message: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"Invalid '{FIELD}': {message}", param=f"{FIELD}.{name}" if name else FIELD, code=code)
