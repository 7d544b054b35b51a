"""Read and check the field `context` of a request: how to handle a prompt that is too long."""

import inspect
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from jobs.errors import InvalidRequest
from jobs.requests.endpoints import CHAT, COMPLETIONS, RESPONSES

FIELD: Final = "context"
#: The field that has the prompt, by URL.
PROMPT: Final = {CHAT: "messages", RESPONSES: "input", COMPLETIONS: "prompt"}
PRIORITY: Final = "priority"  # a field of messages that engines are not sent
_MAX_PRIORITY: Final = 1_000_000
#: Tokens of the context that are set apart for the answer where the request does not limit it: a quarter, at most this.
MAX_RESERVED: Final = 1024

Strategy = Literal[
    "truncate_middle", "sliding_window", "priority", "key_facts", "rotate", "memory", "summarize"
]  # fmt: skip
_Turns = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
_Tokens = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_PATH_IN_ERROR: Final = re.compile(r" - at `\$\.?(.*)`$")
_UNKNOWN: Final = re.compile(r"unknown field `(.*)`")
#: Options that only some strategies read.
_OWN: Final = {"keep_first": "rotate", "summary_tokens": "summarize", "embedding_model": "memory"}


class ContextOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The handling of a prompt that is too long: by a `strategy`, by a model to `route_long` to, or both.

    Without either the request is refused. The last `keep_last` turns, and messages of system and developer, are kept.
    `max_tokens` limits the prompt. `keep_first` belongs to `rotate`, `summary_tokens` to `summarize`,
    `embedding_model` to `memory`.
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
        """Return the number of last turns that are kept: at least one, which may be cut where nothing is set."""
        if self.keep_last is not None:
            return self.keep_last
        return 0 if self.strategy == "truncate_middle" else 1


#: OpenAI's own field for responses: `truncation: auto`.
AUTO: Final = ContextOptions()


def context_options_of(url: str, body: Mapping[str, Any]) -> ContextOptions | None:
    """Return the options of a request, None where it has none. Raises InvalidRequest, also for a message's priority."""
    terms = _parse(url, body) if url in PROMPT else None
    if terms is not None:
        _check_priorities(url, body)
    return terms


def drop_context_fields(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the request without the fields of its messages that engines are not sent. Earlier turns may have them."""
    given = body.get(PROMPT[url]) if url in PROMPT else None
    if not isinstance(given, list) or not any(isinstance(item, dict) and PRIORITY in item for item in given):
        return body
    return {**body, PROMPT[url]: [_drop_priority(item) for item in given]}


def _drop_priority(item: Any) -> Any:
    return {name: value for name, value in item.items() if name != PRIORITY} if isinstance(item, dict) else item


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the field."""
    _, named = msgspec.json.schema_components([ContextOptions])
    return {**named[ContextOptions.__name__], "title": "Context", "description": inspect.getdoc(ContextOptions)}


def _parse(url: str, body: Mapping[str, Any]) -> ContextOptions | None:
    given = body.get(FIELD)
    if given is None:
        return AUTO if url == RESPONSES and body.get("truncation") == "auto" else None
    if url not in (CHAT, RESPONSES):
        raise InvalidRequest(f"'{FIELD}' is for chats and responses.", param=FIELD, code="unsupported_parameter")
    try:
        terms = msgspec.convert(given, ContextOptions)
    except msgspec.ValidationError as error:
        raise _invalid_option(str(error)) from error
    _check(terms)
    return terms


def answer_reserve(body: Mapping[str, Any], limit: int) -> int:
    """Return the tokens of a context that are set apart for the answer."""
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        requested = body.get(name)
        if isinstance(requested, int) and requested > 0:
            return requested
    return min(MAX_RESERVED, limit // 4)


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
        if type(value) not in (int, float) or not abs(value) <= _MAX_PRIORITY:
            message = f"A '{PRIORITY}' is a number between -{_MAX_PRIORITY:,} and {_MAX_PRIORITY:,}."
            raise InvalidRequest(message, param=PROMPT[url], code="invalid_type")


def _invalid_option(message: str) -> InvalidRequest:
    """Return msgspec's error as an InvalidRequest that names the field."""
    location, unknown = _PATH_IN_ERROR.search(message), _UNKNOWN.search(message)
    name = unknown.group(1)[:64] if unknown else location.group(1) if location else ""
    return _bad(name, _PATH_IN_ERROR.sub("", message)[:200] + ".", "unknown_parameter" if unknown else "invalid_value")


def _bad(name: str, message: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"Invalid '{FIELD}': {message}", param=f"{FIELD}.{name}" if name else FIELD, code=code)
