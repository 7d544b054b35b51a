"""Refuse requests that are small to send and dangerous to execute, before an engine sees them.

n, best_of, logprobs     OpenAI's own limits
prompts                  as many as an embedding has inputs, those of all choices counted
prompt_logprobs          memory for every token of a prompt; it has killed engines
echo with logprobs       asks for them too, for completions within the bounds of `workers.engines.echo`
schemas, patterns        size, depth and repetition: the engine compiles each into an automaton
media, tensors           see `workers.engines.media`
tools                    of a response: functions only; vLLM passes over others without a word
values                   see `jobs.requests.values`

The bounds hold for every engine (`workers.engines.router` checks them first): a server behind a URL fetches, compiles
and allocates as an engine in this process does, from a place in the network where the caller is not.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from jobs.requests import values
from jobs.requests.answer_schemas import MAX_SCHEMA_BYTES
from jobs.requests.endpoints import CHAT, COMPLETIONS, RESPONSES
from jobs.requests.message_roles import CHAT_ROLES, INPUT_ROLES, wrong_role
from workers.engines import echo, media
from workers.engines.port import Answer, refusal

MAX_CHOICES: Final = 128  # OpenAI's limit for `n`
MAX_ANSWERS: Final = 2048  # choices of all prompts of a completion; of an embedding it is OpenAI's limit for inputs
MAX_LOGPROBS: Final = 20  # OpenAI's limit for `top_logprobs`
MAX_SCHEMA_DEPTH: Final = 32  # OpenAI allows 10 levels of objects; each takes two of JSON, and lists take more
MAX_PATTERN_CHARACTERS: Final = 1024
MAX_REPETITIONS: Final = 1024  # `{n,m}` in a pattern, all of a pattern multiplied
MAX_ITEMS: Final = 65_536  # minLength, maxItems and their like

#: The field of a request that has messages, and the roles that they may have.
_MESSAGES: Final = {CHAT: ("messages", CHAT_ROLES), RESPONSES: ("input", INPUT_ROLES)}
_NESTED: Final = (dict, list)
_MAXIMA: Final = (
    ("n", MAX_CHOICES),
    ("best_of", MAX_CHOICES),
    ("top_logprobs", MAX_LOGPROBS),
    ("logprobs", MAX_LOGPROBS),
)
_COUNTS: Final = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_REPEATED: Final = re.compile(r"\{(\d*)(?:,(\d*))?\}")

#: Fields that constrain an answer's form: of vLLM (older versions too), SGLang and llama.cpp.
_FORMS: Final = frozenset({
    "structured_outputs", "guided_json", "guided_regex", "guided_grammar", "guided_choice",
    "json_schema", "regex", "ebnf", "grammar",
})  # fmt: skip
_PATTERNS: Final = frozenset({"pattern", "regex", "guided_regex", "whitespace_pattern"})
_GRAMMARS: Final = frozenset({"grammar", "guided_grammar", "ebnf"})
_AS_TEXT: Final = frozenset({"json", "guided_json", "json_schema", "structural_tag"})  # a schema, or its JSON

#: The fields of a request that carry schemas, by URL.
_SCHEMAS: Final[dict[str, frozenset[str]]] = {
    CHAT: _FORMS | {"response_format", "tools", "functions"},
    COMPLETIONS: _FORMS | {"response_format"},
    RESPONSES: _FORMS | {"text", "tools"},
}


def objection(url: str, body: Mapping[str, Any]) -> Answer | None:
    """Return the refusal of a request; None if it may go on."""
    return (
        _counts(body)
        or _of_prompts(url, body)
        or _roles(url, body)
        or _tools(url, body)
        or _values(url, body)
        or _schemas(url, body)
        or media.objection(url, body, _SCHEMAS.get(url, frozenset()))
    )


def _counts(body: Mapping[str, Any]) -> Answer | None:
    if body.get("prompt_logprobs") is not None:
        return refusal(400, "prompt_logprobs is not supported.", param="prompt_logprobs")
    for name, maximum in _MAXIMA:
        value = body.get(name)
        if value is not None and not isinstance(value, int):  # "10000" and 10000.0 are numbers to an engine
            return refusal(400, f"{name} must be an integer.", param=name)
        if value is not None and not 0 <= value <= maximum:  # -1 stands for all tokens
            return refusal(400, f"{name} must be at least 0 and at most {maximum}.", param=name)
    return None


def _of_prompts(url: str, body: Mapping[str, Any]) -> Answer | None:
    # the log-probs of an echoed chat are 0 unless it says null, and 0 is asked
    if url == CHAT and body.get("echo") not in (None, False):
        return refusal(400, "echo is not supported.", param="echo")
    if echo.scores_prompt(url, body) and (wrong := echo.fault(body)):
        return refusal(400, wrong[1], param=wrong[0], code="invalid_value")
    prompts = len(echo.prompts_of(body.get("prompt"))) if url == COMPLETIONS else 1
    if prompts > MAX_ANSWERS:
        return refusal(400, f"prompt must have at most {MAX_ANSWERS} items; it has {prompts}.", param="prompt")
    if prompts * max(body.get("n") or 1, body.get("best_of") or 1) > MAX_ANSWERS:
        return refusal(400, f"n for each of {prompts} prompts must be at most {MAX_ANSWERS} in all.", param="n")
    return None


def _roles(url: str, body: Mapping[str, Any]) -> Answer | None:
    name, roles = _MESSAGES.get(url, ("", ()))
    messages = body.get(name)
    for n, message in enumerate(messages) if isinstance(messages, list) else ():
        role = message.get("role") if isinstance(message, dict) else None
        if isinstance(role, str) and role not in roles:
            param = f"{name}[{n}].role"
            return refusal(400, wrong_role(role, roles), param=param, code="invalid_value")
    return None


def _tools(url: str, body: Mapping[str, Any]) -> Answer | None:
    tools = body.get("tools")
    for tool in tools if url == RESPONSES and isinstance(tools, list) else ():
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            supported = ", ".join(values.RESPONSE_TOOLS)
            message = f"The tool '{str(kind)[:64]}' is not supported by Nightmill. Supported are: {supported}."
            return refusal(400, message, param="tools", code="unsupported_tool")
    return None


def _values(url: str, body: Mapping[str, Any]) -> Answer | None:
    wrong = values.objection(url, body)
    return refusal(400, wrong.message, param=wrong.param, code=wrong.code) if wrong else None


def _schemas(url: str, body: Mapping[str, Any]) -> Answer | None:
    size = 0
    for name in _SCHEMAS.get(url, frozenset()).intersection(body):
        value = body[name]
        if not isinstance(value, (*_NESTED, str)):
            continue
        size += len(msgspec.json.encode(value))
        if size > MAX_SCHEMA_BYTES:
            return refusal(400, f"The schemas of a request must not exceed {MAX_SCHEMA_BYTES} bytes.", param=name)
        if fault := next(filter(None, map(_fault, _walk({name: value}, -1))), None):
            return refusal(400, f"{name}: {fault}", param=name)
    return None


def _walk(value: Any, depth: int = 0) -> Iterator[tuple[int, str, Any]]:
    """Yield depth, key and value of all members, lazily: a caller may stop at the first one that is too deep."""
    pairs = value.items() if isinstance(value, dict) else (("", member) for member in value)
    for key, member in pairs:
        yield depth, key, member
        inner = _read(member) if key in _AS_TEXT and isinstance(member, str) else member
        if isinstance(inner, _NESTED):
            yield from _walk(inner, depth + 1)


def _read(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None


def _fault(entry: tuple[int, str, Any]) -> str | None:
    depth, key, value = entry
    if depth >= MAX_SCHEMA_DEPTH:
        return f"a schema must not be deeper than {MAX_SCHEMA_DEPTH} levels."
    if key in _COUNTS and _number(value) > MAX_ITEMS:
        return f"{key} must be at most {MAX_ITEMS}."
    if key == "patternProperties" and isinstance(value, dict):
        return next(filter(None, map(_pattern_fault, value)), None)
    if key in _PATTERNS and isinstance(value, str):
        return _pattern_fault(value)
    if key in _GRAMMARS and isinstance(value, str):
        return next(filter(None, map(_repetition_fault, value.splitlines())), None)
    return None


def _number(value: Any) -> float:
    """Return a bound as engines read it, which also take "10000" for a number; 0 if it is none."""
    try:
        return float(value) if isinstance(value, int | float | str) else 0.0
    except ValueError:
        return 0.0
    except OverflowError:
        return math.inf


def _pattern_fault(pattern: str) -> str | None:
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        return f"a pattern must not be longer than {MAX_PATTERN_CHARACTERS} characters."
    return _repetition_fault(pattern)


def _repetition_fault(pattern: str) -> str | None:
    times = 1
    for lowest, highest in _REPEATED.findall(pattern):
        times *= max(_bound(lowest), _bound(highest), 1)
        if times > MAX_REPETITIONS:
            return f"a pattern must not repeat more than {MAX_REPETITIONS} times in all."
    return None


def _bound(digits: str) -> int:
    """Return the number that `digits` stand for; too many for Python to convert are more than any bound."""
    return int(digits or 1) if len(digits) < 10 else MAX_REPETITIONS + 1
