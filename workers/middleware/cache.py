"""The cache before an engine, for interactive clients, lines of batches and searches.

    Request ─┬─ /v1/embeddings ───────────▶ vectors ─┐
             ├─ generation with `cache` ─────▶ answers ┴─▶ what is missing ─▶ engine
             └─ all else ─────────────────────────────────────────────────▶ engine, or a refusal with `cache`

Projects share no entries, so that no project learns what another one has asked.

An answer is repeated for the same request, by the same project, to the same model, if the request has `cache`:

    "cache": true                 an answer of any age that the deployment allows
    "cache": {"ttl": 3600}        an answer that is at most an hour old; this answer is stored for an hour

Only repeatable answers are cached: temperature 0, one choice, no stream, no searches, nothing stored. Any other request
with `cache` is refused, so that no client relies on a cache that it does not have. Only complete answers are cached. A
hit is the former answer with a new id, `cached: true`, and its input tokens counted as cached.

For embeddings, only inputs without an entry are sent to the engine.

    inputs ─▶ keys ─▶ cache ─┬─ all found ───▶ answer, without the engine
                             ├─ some found ──▶ engine, for the others ─▶ joined answer
                             └─ none found ──▶ engine, with the request unchanged ─▶ its answer, unchanged

A key covers everything that a vector depends on, except the runtime: the record of a runtime's choice says how close
its vectors are. Vectors are cached only with their exact number of tokens. HTTP servers count all inputs of a request
together, so their vectors are cached only for requests with one input.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np

from jobs.clock import now
from jobs.ids import new_id
from jobs.inference.cache import CachedValue, NewEntry
from jobs.requests.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from jobs.settings import Settings
from workers.engines.encoders.embed import DIGITS, MAX_INPUTS, inputs_of
from workers.engines.port import Answer, Emit, Engine, Request, Usage, refusal
from workers.engines.wire import usage_of
from workers.middleware.base import Middleware
from workers.middleware.response_cache import CacheLookup, ResponseCache
from workers.runtime.outcomes import outcomes_of

#: Maps the model name of a request to the model's own name and the identity of its weights; None if that is unknown.
Identity = Callable[[str], tuple[str, str] | None]


class CacheMiddleware(Middleware):
    """Repeat cached answers and vectors, and ask the engine for the rest."""

    def __init__(self, engine: Engine, response_cache: ResponseCache, identity: Identity, config: Settings) -> None:
        super().__init__(engine)
        self._vectors = VectorCache(engine, response_cache, identity, config.embedding_cache_seconds)
        self._answers = AnswerCache(engine, response_cache, identity, config.response_cache_seconds)

    def concerns(self, request: Request) -> bool:
        return FIELD in request.body or request.url == EMBEDDINGS

    async def handle(self, request: Request) -> Answer:
        setting = request.body.get(FIELD)
        if request.url == EMBEDDINGS:
            return await self._answer_embedding(request, setting)
        if setting is None or setting is False:
            return await self.engine.answer(without_cache_field(request))
        if request.url not in URLS:
            message = f"Invalid 'cache': what {request.url} answers is not cached."
            return refusal(400, message, param=FIELD, code="invalid_value")
        return await self._answers.answer(request)

    async def handle_stream(self, request: Request, emit: Emit) -> Answer:
        setting = request.body.get(FIELD)
        refused = None if setting is None or setting is False else objection(_streaming(request))
        return refused or await self.engine.stream(without_cache_field(request), emit)

    async def _answer_embedding(self, request: Request, setting: object) -> Answer:
        if not isinstance(setting, bool | None):
            return refusal(400, "Invalid 'cache': here it is true or false.", param=FIELD, code="invalid_value")
        forwarded = without_cache_field(request) if FIELD in request.body else request
        return await (self.engine.answer(forwarded) if setting is False else self._vectors.answer(forwarded))


def _streaming(request: Request) -> Request:
    """Return the request with `stream` set; a request to `handle_stream` may lack it."""
    return replace(request, body={**request.body, "stream": True})


# Answers.

FIELD: Final = "cache"
ANSWERS: Final = "answers"
URLS: Final = frozenset({CHAT, COMPLETIONS, RESPONSES})
MAX_ANSWER_BYTES: Final = 256 << 10  # of an answer
_ANSWERS_VERSION: Final = 1
_WHOLE: Final = frozenset({"stop", "length", "tool_calls"})
#: Fields that an answer does not depend on. Responses repeat some of them.
_IGNORED: Final = frozenset({FIELD, "model", "metadata", "user", "safety_identifier", "prompt_cache_key"})
_STORED_ELSEWHERE: Final = ("background", "conversation", "previous_response_id")
_SEARCHES: Final = frozenset({"file_search", "web_search", "web_search_preview", "mcp", "code_interpreter"})


class _Ttl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ttl: int


class AnswerCache:
    """Cache generated answers for at most `seconds`.

    `identity` names a model and its weights; answers of a model without an identity are not cached.
    """

    def __init__(
        self,
        engine: Engine,
        response_cache: ResponseCache,
        identity: Callable[[str], tuple[str, str] | None],
        seconds: int,
    ) -> None:
        self._engine = engine
        self._cache = response_cache
        self._identity = identity
        self._seconds = seconds

    async def answer(self, request: Request) -> Answer:
        """Answer a request that has the field `cache`."""
        if refusal_answer := objection(request):
            return refusal_answer
        ttl = min(_ttl(request.body[FIELD], self._seconds), self._seconds)
        forwarded, key = without_cache_field(request), self._key(request) if ttl and request.tenant else None
        lookup = await self._cache.find(request.tenant, [key]) if key else None
        if key is None or lookup is None:
            return await self._engine.answer(forwarded)
        for entry in lookup.entries.values():
            if entry.created_at > now() - ttl:
                self._cache.count(ANSWERS, 1, 0)
                return _answer_of_entry(request, entry)
        self._cache.count(ANSWERS, 0, 1)
        answer = await self._engine.answer(forwarded)
        self._store(request, key, answer, lookup.epoch, ttl)
        return answer

    def _key(self, request: Request) -> bytes | None:
        weights: tuple[str, ...] | None = self._identity(str(request.body.get("model")))
        if weights is None:
            return None
        if request.adapter is not None:
            weights = (*weights, request.adapter.sha256)
        body = {name: value for name, value in request.body.items() if name not in _IGNORED}
        identity = [_ANSWERS_VERSION, ANSWERS, request.tenant, request.url, weights, body]
        return hashlib.sha256(msgspec.json.encode(identity, order="sorted")).digest()

    def _store(self, request: Request, key: bytes, answer: Answer, epoch: int, ttl: int) -> None:
        words = set(outcomes_of(request.url, answer)) if answer.status == 200 else set()
        if not words or not words <= _WHOLE or len(answer.body) > MAX_ANSWER_BYTES or not request.cacheable:
            return
        at, tokens, job = now(), answer.usage.input_tokens, request.job_id

        def entries_of() -> Iterator[NewEntry]:
            try:
                msgspec.json.decode(answer.body)
            except msgspec.MsgspecError:
                return  # the answer is no JSON; it was not parsed before
            yield NewEntry(key, request.tenant, epoch, answer.body, tokens, at, at + ttl, job)

        self._cache.store(len(answer.body), entries_of)


def without_cache_field(request: Request) -> Request:
    """Return the request without `cache`, as engines expect it."""
    return replace(request, body={name: value for name, value in request.body.items() if name != FIELD})


def objection(request: Request) -> Answer | None:
    """Return a refusal if the request can never be answered from the cache; None otherwise."""
    body = request.body
    if wrong := _setting_fault(body[FIELD]):
        return _refusal(wrong)
    if type(body.get("temperature")) not in (int, float) or body["temperature"] != 0:
        return _refusal("it needs a temperature of 0, given in the request.")
    if why := _repeat_objection(body):
        return _refusal(why)
    if request.url == RESPONSES:
        return _objection_to_response(body)
    return None


def _repeat_objection(body: Mapping[str, Any]) -> str | None:
    """Return why the answer may differ from run to run or is not one whole answer; None if it is repeatable."""
    if any(body.get(name) not in (None, 1) for name in ("n", "best_of")):
        return "it needs one choice: 'n' and 'best_of' are 1."
    if body.get("stream"):
        return "a stream is not cached."
    if _uses_other_models(body.get("context")):
        return "another model than the one named may have a part in the answer."
    return None


def _uses_other_models(options: Any) -> bool:
    """Return whether `context` may send a long prompt to another model, whose weights the key does not cover.

    A malformed `context` is refused by the context window.
    """
    return isinstance(options, dict) and (options.get("route_long") is not None or options.get("strategy") == "memory")


def _objection_to_response(body: Mapping[str, Any]) -> Answer | None:
    if name := next((name for name in _STORED_ELSEWHERE if body.get(name)), None):
        return _refusal(f"it cannot be given together with '{name}'.")
    tools = body.get("tools")
    kinds = [tool.get("type") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    if name := next((kind for kind in kinds if isinstance(kind, str) and kind in _SEARCHES), None):
        return _refusal(f"what the tool '{name}' finds may change.")
    return None


def _setting_fault(value: Any) -> str | None:
    if value is True:
        return None
    try:
        return None if msgspec.convert(value, _Ttl).ttl >= 1 else "its ttl is at least 1 second."
    except msgspec.ValidationError:
        return "it is true, or an object with a 'ttl' in seconds."


def _refusal(why: str) -> Answer:
    return refusal(400, f"Invalid 'cache': {why}", param=FIELD, code="invalid_value")


def _ttl(value: Any, longest: int) -> int:
    return longest if value is True else msgspec.convert(value, _Ttl).ttl


def _answer_of_entry(request: Request, entry: CachedValue) -> Answer:
    """Return the cached answer with a new id, a new time and the fields of this request."""
    body = msgspec.json.decode(entry.value)
    old = str(body.get("id") or "")
    prefix = old[: max(old.find("-"), old.find("_")) + 1]
    body["id"] = new_id(prefix)
    body |= {name: int(now()) for name in ("created", "created_at") if name in body}
    if request.url == RESPONSES:
        defaults: dict[str, Any] = {"metadata": {}}
        body |= {
            name: request.body.get(name, defaults.get(name)) for name in _IGNORED - {FIELD, "model"} if name in body
        }
    body["cached"] = True
    _mark_cached_tokens(body.get("usage"))
    encoded = msgspec.json.encode(body)
    return Answer(200, encoded, usage_of(encoded), is_cached=True)


def _mark_cached_tokens(usage: Any) -> None:
    """Count all input tokens of `usage` as cached."""
    for name in ("prompt_tokens", "input_tokens"):
        if isinstance(usage, dict) and isinstance(usage.get(name), int):
            details = usage.get(f"{name}_details")
            usage[f"{name}_details"] = {**(details if isinstance(details, dict) else {}), "cached_tokens": usage[name]}


# Vectors.

VECTORS: Final = "embeddings"
_VECTORS_VERSION: Final = 1  # of the format of keys and values
_NOT_IN_KEY: Final = frozenset({"model", "input", "encoding_format", "user"})  # irrelevant, or hashed by itself
_CHANGES_ANSWER: Final = ("truncate", "truncate_prompt_tokens")  # their answers have more than vectors
_FRESH_SHARE: Final = 7 / 8  # of its life; an entry with less left is prolonged when it is used


class _Vector(msgspec.Struct):
    index: int
    embedding: msgspec.Raw


class _EmbeddingsAnswer(msgspec.Struct):
    data: list[_Vector]


_decode_embeddings = msgspec.json.Decoder(_EmbeddingsAnswer).decode
_embedding = msgspec.json.Decoder(str | list[float]).decode


@dataclass(frozen=True, slots=True)
class _CacheableRequest:
    """An embedding request that the cache can serve, with its inputs as a list and a key for each."""

    request: Request
    model: str
    inputs: list[Any]
    keys: list[bytes]

    @property
    def base64(self) -> bool:
        return self.request.body.get("encoding_format") == "base64"

    def select_inputs(self, indexes: Sequence[int]) -> Request:
        return replace(self.request, body={**self.request.body, "input": [self.inputs[n] for n in indexes]})


class VectorCache:
    """Cache the vectors of embedding requests for `seconds`.

    `identity` names a model and its weights; vectors of a model without an identity are not cached.
    """

    def __init__(
        self,
        engine: Engine,
        response_cache: ResponseCache,
        identity: Callable[[str], tuple[str, str] | None],
        seconds: int,
    ) -> None:
        self._engine = engine
        self._cache = response_cache
        self._identity = identity
        self._seconds = seconds

    async def answer(self, request: Request) -> Answer:
        cacheable = self._cacheable(request)
        lookup = await self._cache.find(request.tenant, cacheable.keys) if cacheable else None
        if cacheable is None or lookup is None:
            return await self._engine.answer(request)
        missing = [n for n, key in enumerate(cacheable.keys) if key not in lookup.entries]
        self._cache.count(VECTORS, len(cacheable.keys) - len(missing), len(missing))
        if len(missing) == len(cacheable.keys):
            answer = await self._engine.answer(request)
            self._store(cacheable, missing, answer, lookup.epoch)
            return answer
        self._prolong(lookup)
        if not missing:
            joined = _join_vectors(cacheable, lookup, {}, Usage(), cacheable.model)
            return replace(joined, is_cached=True)
        return await self._complete(cacheable, lookup, missing)

    async def _complete(self, cacheable: _CacheableRequest, lookup: CacheLookup, missing: list[int]) -> Answer:
        """Join cached vectors with the engine's vectors for the `missing` inputs.

        If the engine's answer has no usable vectors, send the whole request, so that an error is about the request as
        it came.
        """
        answer = await self._engine.answer(cacheable.select_inputs(missing))
        try:
            vectors = _read(answer, len(missing))
        except ValueError:
            return await self._engine.answer(cacheable.request)
        self._store(cacheable, missing, answer, lookup.epoch)
        return _join_vectors(cacheable, lookup, dict(zip(missing, vectors, strict=True)), answer.usage, cacheable.model)

    def _cacheable(self, request: Request) -> _CacheableRequest | None:
        body = request.body
        named = self._identity(str(body.get("model"))) if request.tenant and self._seconds else None
        inputs = _inputs(body.get("input"))
        if named is None or inputs is None or body.get("encoding_format") not in (None, "float", "base64"):
            return None
        if any(body.get(name) for name in _CHANGES_ANSWER):
            return None
        others = {name: value for name, value in body.items() if name not in _NOT_IN_KEY and value is not None}
        start = hashlib.sha256(_encode([_VECTORS_VERSION, VECTORS, request.tenant, named[1], others]))
        return _CacheableRequest(request, named[0], inputs, [_key(start, item) for item in inputs])

    def _store(self, cacheable: _CacheableRequest, indexes: list[int], answer: Answer, epoch: int) -> None:
        request = cacheable.request
        counted = answer.usage.input_tokens  # 0 if the server does not report usage
        tokens = answer.tokens or ((counted,) if counted and len(indexes) == 1 else ())
        if answer.status != 200 or not request.cacheable or len(tokens) != len(indexes):
            return
        at = now()

        def entries_of() -> Iterator[NewEntry]:
            try:
                values = [_floats(raw) for raw in _read(answer, len(indexes))]
            except ValueError:
                return
            for n, value, count in zip(indexes, values, tokens, strict=True):
                end = at + self._seconds
                yield NewEntry(cacheable.keys[n], request.tenant, epoch, value, count, at, end, request.job_id)

        self._cache.store(len(answer.body), entries_of)

    def _prolong(self, lookup: CacheLookup) -> None:
        end = now() + self._seconds
        old = [
            key for key, entry in lookup.entries.items() if entry.expires_at < end - self._seconds * (1 - _FRESH_SHARE)
        ]
        if old:
            self._cache.prolong(old, end)


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _key(start: Any, text: Any) -> bytes:
    digest = start.copy()
    digest.update(_encode(text))
    return bytes(digest.digest())


def _inputs(value: Any) -> list[Any] | None:
    """Return texts or lists of token ids; None if the engine has to refuse the input."""
    many = inputs_of(value)
    if many is None:
        return None
    kind = type(many[0])
    alike = kind in (str, list) and all(type(item) is kind and item for item in many)
    return many if alike and len(many) <= MAX_INPUTS else None


def _read(answer: Answer, count: int) -> list[msgspec.Raw]:
    """Return the vectors of an answer in order, as raw JSON.

    Raises: ValueError.
    """
    if answer.status != 200:
        raise ValueError
    try:
        data = sorted(_decode_embeddings(answer.body).data, key=lambda entry: entry.index)
    except msgspec.MsgspecError as error:
        raise ValueError from error
    if [entry.index for entry in data] != list(range(count)):
        raise ValueError
    return [entry.embedding for entry in data]


def _floats(raw: msgspec.Raw) -> bytes:
    """Return a vector as float32 bytes, little-endian.

    Raises: ValueError.
    """
    try:
        vector = _embedding(raw)
        with np.errstate(over="ignore"):
            value = base64.b64decode(vector) if isinstance(vector, str) else np.asarray(vector, "<f4").tobytes()
    except (msgspec.MsgspecError, binascii.Error) as error:
        raise ValueError from error
    if not value or len(value) % 4 or not np.isfinite(np.frombuffer(value, "<f4")).all():
        raise ValueError
    return value


def _join_vectors(
    cacheable: _CacheableRequest, lookup: CacheLookup, vectors: Mapping[int, msgspec.Raw], usage: Usage, model: str
) -> Answer:
    """Return OpenAI's embedding answer, whose usage counts cached tokens apart."""
    entries = [lookup.entries.get(key) for key in cacheable.keys]
    data = [
        {
            "object": "embedding",
            "index": n,
            "embedding": _encode_vector(entry, base64=cacheable.base64) if entry else vectors[n],
        }
        for n, entry in enumerate(entries)
    ]
    known = sum(entry.tokens for entry in entries if entry)
    total = known + usage.input_tokens
    counts = {"prompt_tokens": total, "total_tokens": total, "prompt_tokens_details": {"cached_tokens": known}}
    body = msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": counts})
    return Answer(200, body, Usage(total, known + usage.cached_tokens))


def _encode_vector(entry: CachedValue, *, base64: bool) -> Any:
    if base64:
        return binascii.b2a_base64(entry.value, newline=False).decode()
    return np.frombuffer(entry.value, "<f4").astype("f8").round(DIGITS).tolist()
