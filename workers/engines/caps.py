"""Why a request is refused before an engine sees it: what is small to ask for and dangerous to answer.

n, best_of, logprobs     OpenAI's own limits
prompt_logprobs          memory for every token of a prompt; it has killed engines
schemas, patterns        size, depth and repetition: the engine compiles each into an automaton
media                    `data:` URLs only: any other would be fetched, or opened, from where the engine stands
tools                    of a response: functions only; vLLM passes over others without a word
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from jobs.endpoints import CHAT, RESPONSES
from workers.engines.documented import FIELDS
from workers.engines.port import Answer, refusal

MOST_CHOICES: Final = 128  # OpenAI's limit for `n`
MOST_LOGPROBS: Final = 20  # OpenAI's limit for `top_logprobs`
MOST_SCHEMA_BYTES: Final = 128 * 1024  # of all schemas of a request; OpenAI allows 120,000 characters of names
MOST_SCHEMA_DEPTH: Final = 32  # OpenAI allows 10 levels of objects; each takes two of JSON, and lists take more
MOST_PATTERN_CHARACTERS: Final = 1024
MOST_REPETITIONS: Final = 1024  # `{n,m}` in a pattern, all of a pattern multiplied
MOST_ITEMS: Final = 65_536  # minLength, maxItems and their like

_COUNTS: Final = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_REPEATED: Final = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_MEDIA: Final = ("image_url", "video_url", "audio_url", "file_url")

#: Where a request carries schemas, by URL.
_SCHEMAS: Final = {
    CHAT: ("response_format", "tools", "functions"),
    RESPONSES: ("text", "tools"),
}
_CONTENT: Final = {CHAT: "messages", RESPONSES: "input"}


def objection(url: str, body: Mapping[str, Any]) -> Answer | None:
    """The refusal of this request; None if it may go on."""
    if url not in FIELDS:
        return refusal(404, f"Unknown URL {url}; an engine serves {', '.join(FIELDS)}.", param="url")
    return _counts(body) or _tools(url, body) or _schemas(url, body) or _media(url, body)


def _counts(body: Mapping[str, Any]) -> Answer | None:
    if body.get("prompt_logprobs") is not None:
        return refusal(400, "prompt_logprobs is not supported.", param="prompt_logprobs")
    for name, most in (
        ("n", MOST_CHOICES),
        ("best_of", MOST_CHOICES),
        ("top_logprobs", MOST_LOGPROBS),
        ("logprobs", MOST_LOGPROBS),
    ):
        value = body.get(name)
        if isinstance(value, int) and value > most:
            return refusal(400, f"{name} must be at most {most}, not {value}.", param=name)
    return None


def _tools(url: str, body: Mapping[str, Any]) -> Answer | None:
    tools = body.get("tools")
    for tool in tools if url == RESPONSES and isinstance(tools, list) else ():
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            message = f"Tools of the type '{str(kind)[:64]}' are not available; of the type 'function' they are."
            return refusal(400, message, param="tools", code="unsupported_tool")
    return None


def _schemas(url: str, body: Mapping[str, Any]) -> Answer | None:
    size = 0
    for name in _SCHEMAS.get(url, ()):
        value = body.get(name)
        if not isinstance(value, dict | list):
            continue
        size += len(msgspec.json.encode(value))
        if size > MOST_SCHEMA_BYTES:
            return refusal(400, f"The schemas of a request must not exceed {MOST_SCHEMA_BYTES} bytes.", param=name)
        if fault := next(filter(None, map(_fault, _walk(value))), None):
            return refusal(400, f"{name}: {fault}", param=name)
    return None


def _walk(value: Any, depth: int = 0) -> Iterator[tuple[int, str, Any]]:
    """Depth, key and value of everything in it, no deeper than its reader goes on after the first that is too deep."""
    pairs = value.items() if isinstance(value, dict) else (("", one) for one in value)
    for key, one in pairs:
        yield depth, key, one
        if isinstance(one, dict | list):
            yield from _walk(one, depth + 1)


def _fault(found: tuple[int, str, Any]) -> str | None:
    depth, key, value = found
    if depth >= MOST_SCHEMA_DEPTH:
        return f"a schema must not be deeper than {MOST_SCHEMA_DEPTH} levels."
    if key in _COUNTS and isinstance(value, int | float) and value > MOST_ITEMS:
        return f"{key} must be at most {MOST_ITEMS}."
    if key == "pattern" and isinstance(value, str):
        return _pattern_fault(value)
    return None


def _pattern_fault(pattern: str) -> str | None:
    if len(pattern) > MOST_PATTERN_CHARACTERS:
        return f"a pattern must not be longer than {MOST_PATTERN_CHARACTERS} characters."
    times = 1
    for least, most in _REPEATED.findall(pattern):
        times *= max(int(least or 1), int(most or 1), 1)
        if times > MOST_REPETITIONS:
            return f"a pattern must not repeat more than {MOST_REPETITIONS} times in all."
    return None


def _media(url: str, body: Mapping[str, Any]) -> Answer | None:
    name = _CONTENT.get(url, "")
    content = body.get(name)
    for part in _parts(content) if isinstance(content, list) else ():
        for kind in _MEDIA:
            place = part.get(kind)
            place = place.get("url") if isinstance(place, dict) else place
            if isinstance(place, str) and not place.lstrip().lower().startswith("data:"):
                message = f"{kind}: only data: URLs are taken; nothing is fetched for a request."
                return refusal(400, message, param=name, code="media_url_not_allowed")
    return None


def _parts(items: list[Any]) -> Iterator[Mapping[str, Any]]:
    """The content parts of messages; an item that is no message may be a part itself."""
    for item in items:
        if isinstance(item, dict):
            yield item
            content = item.get("content")
            yield from (part for part in content if isinstance(part, dict)) if isinstance(content, list) else ()
