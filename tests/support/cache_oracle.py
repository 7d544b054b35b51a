"""Judge the answers that clients of the cache got, by these answers and the engine's log alone.

    Clearing   one DELETE /v1/cache
    Recalled   the answer to one request that says `cache`; the stub engine stamps each with the moment it was asked, so
               that one and the same is known wherever it turns up
    Embedded   the vectors of one request, and how many tokens of it were there already

    Anew       at the quiet end: a clearing, and all that was asked for after it, in rounds

Each project asks one thing after the other, but for the same request twice at once; a request belongs to the time
between two clearings of its project: its epoch.
"""

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.fake_engine import reply
from tests.support.stub_engine import text_mark

CHAT, TEXT, RESPONSE, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"
Key = tuple[str, str, str]
Vector = tuple[float, ...]
_NEAR = 1e-9  # numbers are rounded to nine digits, and packed ones are not


@dataclass(frozen=True, slots=True)
class Clearing:
    project: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Recalled:
    """`cached` is what the answer says of itself."""

    project: str
    url: str
    prompt: str
    began: float
    ended: float
    text: str
    cached: bool

    @property
    def key(self) -> Key:
        return self.project, self.url, self.prompt

    @property
    def stamp(self) -> float:
        """When the engine was asked for it; 0 of an answer that does not say so."""
        said = self.text.partition(" ")[0]
        return float(said) if said.replace(".", "", 1).isdigit() else 0.0

    def __str__(self) -> str:
        return f"{self.project} {self.url} {self.prompt!r} at {self.began:.3f}"


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors in the order of the texts; `cached` of its `tokens` were there."""

    project: str
    texts: tuple[str, ...]
    began: float
    ended: float
    vectors: tuple[Vector, ...]
    tokens: int
    cached: int


@dataclass(frozen=True, slots=True)
class Anew:
    """Of one project that nobody else asks for. Each round asks for the same."""

    clearing: Clearing
    answers: Sequence[Sequence[Recalled]]
    vectors: Sequence[Sequence[Embedded]]

    @property
    def is_whole(self) -> bool:
        """Whether the last round was from the cache."""
        return all(one.cached for one in self.answers[-1]) and all(_is_there(one) for one in self.vectors[-1])


def floats(vector: Any) -> Vector:
    """Return a vector, whether it came as numbers or packed."""
    return tuple(np.frombuffer(base64.b64decode(vector), "<f4").tolist()) if isinstance(vector, str) else tuple(vector)


def answered(told: Sequence[Recalled], clearings: Sequence[Clearing]) -> list[str]:
    """Check that each cached answer belongs to its prompt and project, and is newer than the last clearing.

    It must also be the only answer that is given again.
    """
    faults = [f"{one}: answered {one.text!r}" for one in told if not one.stamp or not _is_echo(one)]
    told = [one for one in told if one.stamp]
    for one in told:
        since = max((cut.began for cut in _before(one, clearings)), default=0.0)
        if one.stamp < since:
            faults.append(f"{one}: an answer of {one.stamp:.3f}, though the cache was cleared at {since:.3f}")
    return [*faults, *_owners(told), *_only_one(told, clearings)]


def _is_echo(one: Recalled) -> bool:
    """Whether it is what the engine says to this prompt, but for the stamp."""
    return one.text.partition(" ")[2] == _text(one.url, _reply(one.url, one.prompt))


def _reply(url: str, prompt: str) -> Any:
    """Return the answer of the stub engine."""
    return json.loads(reply(url, {}, prompt).body)


def _text(url: str, body: Any) -> str:
    if url == RESPONSE:
        return str(body["output"][0]["content"][0]["text"])
    [choice] = body["choices"]
    return str(choice["message"]["content"] if url == CHAT else choice["text"])


def _before(one: Recalled | Embedded, clearings: Iterable[Clearing]) -> list[Clearing]:
    """Return those that had ended when the question came."""
    return [cut for cut in clearings if cut.project == one.project and cut.ended <= one.began]


def _owners(told: Iterable[Recalled]) -> Iterator[str]:
    """Return the owner of each engine answer: one request of one project asked for it, and no other claims it."""
    by_stamp: dict[float, list[Recalled]] = defaultdict(list)
    for one in told:
        by_stamp[one.stamp].append(one)
    for stamp, ones in by_stamp.items():
        owners = {one.key for one in ones}
        if len(owners) > 1:
            yield f"the answer of {stamp:.6f} was told to {sorted(owners)}"
        if sum(not one.cached for one in ones) > 1:
            yield f"the answer of {stamp:.6f} was told to {ones[0].key} again, and not said to be cached"


def _only_one(told: Iterable[Recalled], clearings: Sequence[Clearing]) -> Iterator[str]:
    given: dict[tuple[Key, int], set[float]] = defaultdict(set)
    for one in told:
        if one.cached:
            given[one.key, len(_before(one, clearings))].add(one.stamp)
    for (key, epoch), stamps in given.items():
        if len(stamps) > 1:
            yield f"{key} was given {len(stamps)} answers again after {epoch} clearings: {sorted(stamps)}"


def embedded(told: Sequence[Embedded], clearings: Sequence[Clearing], log: Iterable[str]) -> list[str]:
    """Check that a text has the same vector for all clients at all times.

    Each project must ask the engine for it, again after each clearing, and so must each request that reports no cached
    vector.
    """
    heard = Counter(log)
    texts = {text for one in told for text in one.texts}
    due: dict[tuple[str, str, int], int] = defaultdict(int)
    for one in told:
        for text in one.texts:
            due[text, one.project, len(_before(one, clearings))] += not one.cached
    expected = {text: floats(_reply(EMBEDDINGS, text)["data"][0]["embedding"]) for text in texts}
    faults = [f"{one.texts}: vectors of something else" for one in told if not _are_theirs(one, expected)]
    for text in texts:
        least = sum(max(1, times) for (about, _, _), times in due.items() if about == text)
        if least > (asked := heard[text] + heard[text_mark(text)]):
            faults.append(f"{text!r}: the engine was asked {asked} times, and must have been {least} times")
    return faults + [f"{one.texts}: {one.cached} of {one.tokens} tokens cached" for one in told if _odd(one)]


def anew(told: Anew) -> list[str]:
    """Check that the first round finds nothing in the cache, and the last one everything."""
    first = [f"{one}: cached, though the cache was cleared" for one in told.answers[0] if one.cached]
    first += [f"{one.project} {one.texts}: {one.cached} tokens cached" for one in told.vectors[0] if one.cached]
    last = [f"{one}: still not cached" for one in told.answers[-1] if not one.cached]
    last += [f"{one.project} {one.texts}: still not cached" for one in told.vectors[-1] if not _is_there(one)]
    return first + last


def _is_there(one: Embedded) -> bool:
    return 0 < one.tokens == one.cached


def _are_theirs(one: Embedded, expected: Mapping[str, Vector]) -> bool:
    due = [expected[text] for text in one.texts]
    return np.shape(one.vectors) == np.shape(due) and bool(np.allclose(one.vectors, due, rtol=1e-7, atol=_NEAR))


def _odd(one: Embedded) -> bool:
    return not 0 <= one.cached <= one.tokens
