"""Answers that are given again, to clients who ask for it: the same request, by the same project, of the same model.

    "cache": true                 an answer as old as the deployment lets it be
    "cache": {"ttl": 3600}        none that is older than an hour; and whoever asks later may have this one as long

Only what is computed alike each time is taken: temperature 0, one choice, no stream, nothing that is looked up or
kept. All else that says `cache` is refused, so that nobody believes to have what he has not. What a model says is kept
if it came to its end; a hit is the answer as it was, under a new id, `cached`, its input counted as cached.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from jobs.clock import now
from jobs.ids import new_id
from jobs.inference.cache import Entry, New
from jobs.requests.endpoints import CHAT, COMPLETIONS, RESPONSES
from workers.engines.port import Answer, Engine, Request, refusal
from workers.engines.wire import usage_of
from workers.middleware.caching.response_cache import Shelf
from workers.runtime.outcomes import outcomes_of

FIELD: Final = "cache"
KIND: Final = "answers"
URLS: Final = frozenset({CHAT, COMPLETIONS, RESPONSES})
MOST_BYTES: Final = 256 << 10  # of an answer
_VERSION: Final = 1
_WHOLE: Final = frozenset({"stop", "length", "tool_calls"})
#: Say who asks and not what: an answer is the same without them. Responses repeat some.
_UNHEEDED: Final = frozenset({FIELD, "model", "metadata", "user", "safety_identifier", "prompt_cache_key"})
_KEPT_ELSEWHERE: Final = ("background", "conversation", "previous_response_id")
_SEARCHES: Final = frozenset({"file_search", "web_search", "web_search_preview", "mcp", "code_interpreter"})


class _Ttl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ttl: int


class CachedAnswers:
    """`identity` names a model and its weights; what none is known of is asked anew each time. `seconds` is the longest
    time to live."""

    def __init__(
        self, engine: Engine, shelf: Shelf, identity: Callable[[str], tuple[str, str] | None], seconds: int
    ) -> None:
        self._engine = engine
        self._shelf = shelf
        self._identity = identity
        self._seconds = seconds

    async def answer(self, request: Request) -> Answer:
        """Of a request that says `cache`."""
        if refused := objection(request):
            return refused
        ttl = min(_ttl(request.body[FIELD], self._seconds), self._seconds)
        asked, key = without(request), self._key(request) if ttl and request.tenant else None
        found = await self._shelf.find(request.tenant, [key]) if key else None
        if key is None or found is None:
            return await self._engine.answer(asked)
        for entry in found.entries.values():
            if entry.created_at > now() - ttl:
                self._shelf.count(KIND, 1, 0)
                return _again(request, entry)
        self._shelf.count(KIND, 0, 1)
        answer = await self._engine.answer(asked)
        self._keep(request, key, answer, found.epoch, ttl)
        return answer

    def _key(self, request: Request) -> bytes | None:
        weights = self._identity(str(request.body.get("model")))
        if weights is None:
            return None
        body = {name: value for name, value in request.body.items() if name not in _UNHEEDED}
        facts = [_VERSION, KIND, request.tenant, request.url, weights, body]
        return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).digest()

    def _keep(self, request: Request, key: bytes, answer: Answer, epoch: int, ttl: int) -> None:
        words = set(outcomes_of(request.url, answer)) if answer.status == 200 else set()
        if not words or not words <= _WHOLE or len(answer.body) > MOST_BYTES or not request.kept:
            return
        at, tokens, job = now(), answer.usage.input_tokens, request.job_id

        def make() -> Iterator[New]:
            try:
                msgspec.json.decode(answer.body)
            except msgspec.MsgspecError:
                return  # what nobody looked at of it cannot be read
            yield New(key, request.tenant, epoch, answer.body, tokens, at, at + ttl, job)

        self._shelf.keep(len(answer.body), make)


def without(request: Request) -> Request:
    """The request as an engine is asked it."""
    return replace(request, body={name: value for name, value in request.body.items() if name != FIELD})


def objection(request: Request) -> Answer | None:
    """Why this cannot be answered from the cache, and never could."""
    body = request.body
    if wrong := _malformed(body[FIELD]):
        return _refused(wrong)
    if type(body.get("temperature")) not in (int, float) or body["temperature"] != 0:
        return _refused("it needs a temperature of 0, given in the request.")
    if why := _unlike(body):
        return _refused(why)
    if request.url == RESPONSES:
        return _objection_to_response(body)
    return None


def _unlike(body: Mapping[str, Any]) -> str | None:
    """What of a request makes its answer another than one whole answer of one model."""
    if any(body.get(name) not in (None, 1) for name in ("n", "best_of")):
        return "it needs one choice: 'n' and 'best_of' are 1."
    if body.get("stream"):
        return "a stream is not cached."
    if _asks_others(body.get("context")):
        return "another model than the one named may have a part in the answer."
    return None


def _asks_others(terms: Any) -> bool:
    """Whether a prompt that is too long goes to a model whose weights no key holds; what is no such field is refused
    elsewhere."""
    return isinstance(terms, dict) and (terms.get("route_long") is not None or terms.get("strategy") == "memory")


def _objection_to_response(body: Mapping[str, Any]) -> Answer | None:
    if name := next((name for name in _KEPT_ELSEWHERE if body.get(name)), None):
        return _refused(f"it cannot be given together with '{name}'.")
    tools = body.get("tools")
    kinds = [tool.get("type") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    if name := next((kind for kind in kinds if isinstance(kind, str) and kind in _SEARCHES), None):
        return _refused(f"what the tool '{name}' finds may change.")
    return None


def _malformed(value: Any) -> str | None:
    if value is True:
        return None
    try:
        return None if msgspec.convert(value, _Ttl).ttl >= 1 else "its ttl is at least 1 second."
    except msgspec.ValidationError:
        return "it is true, or an object with a 'ttl' in seconds."


def _refused(why: str) -> Answer:
    return refusal(400, f"Invalid 'cache': {why}", param=FIELD, code="invalid_value")


def _ttl(value: Any, longest: int) -> int:
    return longest if value is True else msgspec.convert(value, _Ttl).ttl


def _again(request: Request, entry: Entry) -> Answer:
    """An answer as it was, with what is this request's."""
    body = msgspec.json.decode(entry.value)
    old = str(body.get("id") or "")
    prefix = old[: max(old.find("-"), old.find("_")) + 1]
    body["id"] = new_id(prefix)
    body |= {name: int(now()) for name in ("created", "created_at") if name in body}
    if request.url == RESPONSES:
        defaults: dict[str, Any] = {"metadata": {}}
        body |= {
            name: request.body.get(name, defaults.get(name)) for name in _UNHEEDED - {FIELD, "model"} if name in body
        }
    body["cached"] = True
    _count_as_cached(body.get("usage"))
    said = msgspec.json.encode(body)
    return Answer(200, said, usage_of(said))


def _count_as_cached(usage: Any) -> None:
    """All of its input."""
    for name in ("prompt_tokens", "input_tokens"):
        if isinstance(usage, dict) and isinstance(usage.get(name), int):
            details = usage.get(f"{name}_details")
            usage[f"{name}_details"] = {**(details if isinstance(details, dict) else {}), "cached_tokens": usage[name]}
