"""/v1/embeddings from the cache: of the inputs of a request only those are embedded that were not before.

    inputs ─▶ keys ─▶ shelf ─┬─ all there ───▶ answer, without the engine
                             ├─ some there ──▶ engine, for the others ─▶ put together
                             └─ none there ──▶ engine, as it was asked ─▶ its answer, as it is

A key holds all that a vector depends on but how it is computed: whoever chooses another runtime has said how near its
vectors are. Tokens are counted exactly or nothing is kept: of servers, which count a request's inputs together, only
requests of one input are.
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
from jobs.inference.cache import Entry, New
from workers.engines.embed_request import DIGITS, MOST_INPUTS, inputs_of
from workers.engines.port import Answer, Engine, Request, Usage
from workers.middleware.caching.response_cache import Found, Shelf

KIND: Final = "embeddings"
_VERSION: Final = 1  # of what a key and a value are
_HOW: Final = frozenset({"model", "input", "encoding_format", "user"})  # no vector depends on it, or it is hashed apart
_TOLD: Final = ("truncate", "truncate_prompt_tokens")  # their answers say more than vectors
_FRESH: Final = 7 / 8  # of its time; what has less left is prolonged when it is used


class _Vector(msgspec.Struct):
    index: int
    embedding: msgspec.Raw


class _Said(msgspec.Struct):
    data: list[_Vector]


_said = msgspec.json.Decoder(_Said).decode
_embedding = msgspec.json.Decoder(str | list[float]).decode


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A request that the cache can serve: its inputs as a list, and a key for each."""

    request: Request
    model: str
    inputs: list[Any]
    keys: list[bytes]

    @property
    def base64(self) -> bool:
        return self.request.body.get("encoding_format") == "base64"

    def only(self, places: Sequence[int]) -> Request:
        return replace(self.request, body={**self.request.body, "input": [self.inputs[n] for n in places]})


class CachedVectors:
    """`identity` names a model and its weights; None of those that nobody has pinned down."""

    def __init__(
        self, engine: Engine, shelf: Shelf, identity: Callable[[str], tuple[str, str] | None], seconds: int
    ) -> None:
        self._engine = engine
        self._shelf = shelf
        self._identity = identity
        self._seconds = seconds

    async def answer(self, request: Request) -> Answer:
        wanted = self._wanted(request)
        found = await self._shelf.find(request.tenant, wanted.keys) if wanted else None
        if wanted is None or found is None:
            return await self._engine.answer(request)
        missing = [n for n, key in enumerate(wanted.keys) if key not in found.entries]
        self._shelf.count(KIND, len(wanted.keys) - len(missing), len(missing))
        if len(missing) == len(wanted.keys):
            answer = await self._engine.answer(request)
            self._keep(wanted, missing, answer, found.epoch)
            return answer
        self._prolong(found)
        if not missing:
            return _written(wanted, found, {}, Usage(), wanted.model)
        return await self._completed(wanted, found, missing)

    async def _completed(self, wanted: _Wanted, found: Found, missing: list[int]) -> Answer:
        """With what the engine says of the rest. It is asked for all where that is not to be used: its words are then
        about the request as it came."""
        answer = await self._engine.answer(wanted.only(missing))
        try:
            vectors = _read(answer, len(missing))
        except ValueError:
            return await self._engine.answer(wanted.request)
        self._keep(wanted, missing, answer, found.epoch)
        return _written(wanted, found, dict(zip(missing, vectors, strict=True)), answer.usage, wanted.model)

    def _wanted(self, request: Request) -> _Wanted | None:
        body = request.body
        named = self._identity(str(body.get("model"))) if request.tenant and self._seconds else None
        inputs = _inputs(body.get("input"))
        if named is None or inputs is None or body.get("encoding_format") not in (None, "float", "base64"):
            return None
        if any(body.get(name) for name in _TOLD):
            return None
        others = {name: value for name, value in body.items() if name not in _HOW and value is not None}
        start = hashlib.sha256(_encode([_VERSION, KIND, request.tenant, named[1], others]))
        return _Wanted(request, named[0], inputs, [_key(start, one) for one in inputs])

    def _keep(self, wanted: _Wanted, places: list[int], answer: Answer, epoch: int) -> None:
        request = wanted.request
        counted = answer.usage.input_tokens  # 0: its server says nothing of that
        tokens = answer.tokens or ((counted,) if counted and len(places) == 1 else ())
        if answer.status != 200 or not request.kept or len(tokens) != len(places):
            return
        at = now()

        def make() -> Iterator[New]:
            try:
                values = [_floats(one) for one in _read(answer, len(places))]
            except ValueError:
                return
            for n, value, count in zip(places, values, tokens, strict=True):
                end = at + self._seconds
                yield New(wanted.keys[n], request.tenant, epoch, value, count, at, end, request.job_id)

        self._shelf.keep(len(answer.body), make)

    def _prolong(self, found: Found) -> None:
        end = now() + self._seconds
        old = [key for key, entry in found.entries.items() if entry.expires_at < end - self._seconds * (1 - _FRESH)]
        if old:
            self._shelf.prolong(old, end)


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _key(start: Any, text: Any) -> bytes:
    digest = start.copy()
    digest.update(_encode(text))
    return bytes(digest.digest())


def _inputs(value: Any) -> list[Any] | None:
    """Texts or lists of token ids; None where the engine is to say what is wrong."""
    many = inputs_of(value)
    if many is None:
        return None
    kind = type(many[0])
    alike = kind in (str, list) and all(type(one) is kind and one for one in many)
    return many if alike and len(many) <= MOST_INPUTS else None


def _read(answer: Answer, count: int) -> list[msgspec.Raw]:
    """The vectors of an answer as they stand there, in order. Raises ValueError."""
    if answer.status != 200:
        raise ValueError
    try:
        data = sorted(_said(answer.body).data, key=lambda one: one.index)
    except msgspec.MsgspecError as error:
        raise ValueError from error
    if [one.index for one in data] != list(range(count)):
        raise ValueError
    return [one.embedding for one in data]


def _floats(raw: msgspec.Raw) -> bytes:
    """Float32, little-endian. Raises ValueError."""
    try:
        said = _embedding(raw)
        with np.errstate(over="ignore"):
            value = base64.b64decode(said) if isinstance(said, str) else np.asarray(said, "<f4").tobytes()
    except (msgspec.MsgspecError, binascii.Error) as error:
        raise ValueError from error
    if not value or len(value) % 4 or not np.isfinite(np.frombuffer(value, "<f4")).all():
        raise ValueError
    return value


def _written(wanted: _Wanted, found: Found, vectors: Mapping[int, msgspec.Raw], usage: Usage, model: str) -> Answer:
    """OpenAI's answer, whose usage says how much of it was there."""
    entries = [found.entries.get(key) for key in wanted.keys]
    data = [
        {"object": "embedding", "index": n, "embedding": _shown(entry, base64=wanted.base64) if entry else vectors[n]}
        for n, entry in enumerate(entries)
    ]
    known = sum(entry.tokens for entry in entries if entry)
    total = known + usage.input_tokens
    said = {"prompt_tokens": total, "total_tokens": total, "prompt_tokens_details": {"cached_tokens": known}}
    body = msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": said})
    return Answer(200, body, Usage(total, known + usage.cached_tokens))


def _shown(entry: Entry, *, base64: bool) -> Any:
    if base64:
        return binascii.b2a_base64(entry.value, newline=False).decode()
    return np.frombuffer(entry.value, "<f4").astype("f8").round(DIGITS).tolist()
