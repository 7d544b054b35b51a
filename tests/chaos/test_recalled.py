"""The judgement of caches reports each violation, made by hand."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.support import cache_oracle
from tests.support.cache_oracle import CHAT, EMBEDDINGS, RESPONSE, TEXT, Anew, Clearing, Embedded, Recalled, floats
from tests.support.fake_engine import reply
from tests.support.stub_engine import STAMP, stamped, text_mark

pytestmark = pytest.mark.verify

_PROMPT = f"Recall it {STAMP}"


def _said(stamp: float, url: str = CHAT, prompt: str = _PROMPT) -> str:
    body = json.loads(stamped(reply(url, {}, prompt), stamp).body)
    if url == RESPONSE:
        return str(body["output"][0]["content"][0]["text"])
    return str(body["choices"][0]["message"]["content"] if url == CHAT else body["choices"][0]["text"])


def _answer(at: float, stamp: float = 0.0, url: str = CHAT, **changes: Any) -> Recalled:
    """Asked at this moment, and answered by the engine then or, from the cache, at another."""
    text = _said(stamp or at + 0.1, url)
    return replace(Recalled("a", url, _PROMPT, at, at + 0.2, text, bool(stamp)), **changes)


@pytest.mark.parametrize("url", [CHAT, TEXT, RESPONSE])
def test_repeated_answer_passes_until_cache_is_cleared(url: str) -> None:
    told = [_answer(1, url=url), _answer(2, 1.1, url), _answer(3, 1.1, url), _answer(6, url=url), _answer(7, 6.1, url)]

    assert cache_oracle.answered(told, [Clearing("a", 4, 5), Clearing("b", 6.5, 6.8)]) == []


@pytest.mark.parametrize(
    ("told", "violation"),
    [
        ([_answer(1), _answer(6, 1.1)], "though the cache was cleared at 4.000"),
        ([_answer(1), _answer(2, 1.1, project="b")], "was told to [('a', "),
        ([_answer(1), _answer(2, 1.1, TEXT)], "was told to [('a', '/v1/chat/completions'"),
        ([_answer(1), _answer(2, text=_said(1.1))], "and not said to be cached"),
        ([_answer(1), _answer(2), _answer(3, 1.1), _answer(3.2, 2.1)], "was given 2 answers again"),
        ([_answer(1, text=_said(1.1, prompt=f"Recall that {STAMP}"))], "answered '1.100000 echo"),
        ([_answer(1, text=_said(1.1).partition(" ")[2])], "answered 'echo"),
    ],
)
def test_an_answer_that_is_not_its_clients_is_found(told: list[Recalled], violation: str) -> None:
    [found] = cache_oracle.answered(told, [Clearing("a", 4, 5)])

    assert violation in found


def test_older_answer_during_clearing_and_newer_after_clearing_pass() -> None:
    told = [_answer(1), _answer(2, 1.1), _answer(4.5, 1.1), _answer(6), _answer(7, 6.1)]

    assert cache_oracle.answered(told, [Clearing("a", 4, 5)]) == []


def _vectors(*texts: str, at: float = 1, **changes: Any) -> Embedded:
    made = tuple(floats(json.loads(reply(EMBEDDINGS, {}, text).body)["data"][0]["embedding"]) for text in texts)
    return replace(Embedded("a", texts, at, at + 0.1, made, 4, 0), **changes)


_CUT = Clearing("a", 4, 5)


def _anew(*rounds: tuple[Recalled, Embedded]) -> Anew:
    return Anew(_CUT, [[answer] for answer, _ in rounds], [[vectors] for _, vectors in rounds])


_MISS, _HIT = (_answer(6), _vectors("x", at=6)), (_answer(8, 6.1), _vectors("x", at=8, cached=4))


@pytest.mark.parametrize(
    ("told", "violation"),
    [
        (_anew(_MISS, _HIT), ""),
        (_anew(_MISS, _MISS, _HIT), ""),
        (_anew((_MISS[0], _HIT[1]), _HIT), "a ('x',): 4 tokens cached"),
        (_anew((_HIT[0], _MISS[1]), _HIT), "cached, though the cache was cleared"),
        (_anew(_MISS, (_MISS[0], _HIT[1])), "at 6.000: still not cached"),
        (_anew(_MISS, (_HIT[0], _MISS[1])), "a ('x',): still not cached"),
        (_anew(_MISS, (_HIT[0], _vectors("x", cached=3))), "a ('x',): still not cached"),
    ],
)
def test_a_cache_that_was_cleared_in_peace_is_empty_and_then_is_not(told: Anew, violation: str) -> None:
    found = "; ".join(cache_oracle.anew(told))

    assert violation in found
    assert bool(found) is bool(violation)
    assert told.is_whole is ("still" not in violation)


def test_vectors_come_as_numbers_or_packed() -> None:
    packed = json.loads(reply(EMBEDDINGS, {"encoding_format": "base64"}, "x").body)["data"][0]["embedding"]

    assert cache_oracle.embedded([_vectors("x", vectors=(floats(packed),))], [], ["x"]) == []


@pytest.mark.parametrize(
    ("told", "log", "passes"),
    [
        ([_vectors("x"), _vectors("x", at=2, cached=4)], ["x"], True),
        ([_vectors("x"), _vectors("x", at=2)], ["x"], False),  # nothing was there, and nobody was asked
        ([_vectors("x"), _vectors("x", at=2)], ["x", text_mark("x")], True),
        ([_vectors("x"), _vectors("x", at=2, project="b", cached=4)], ["x"], False),  # another's
        ([_vectors("x"), _vectors("x", at=6, cached=4)], ["x"], False),  # of before the clearing
        ([_vectors("x"), _vectors("x", at=6, cached=4)], ["x", "x"], True),
        ([_vectors("x"), _vectors("x", "y", at=2, cached=2)], ["x", "y"], True),
        ([_vectors("x"), _vectors("x", "y", at=2, cached=2)], ["x"], False),
        ([_vectors("x", vectors=_vectors("y").vectors)], ["x"], False),
        ([_vectors("x", "y", vectors=_vectors("y", "x").vectors)], ["x", "y"], False),
        ([_vectors("x", "y", vectors=_vectors("x").vectors)], ["x", "y"], False),
        ([_vectors("x", cached=5)], ["x"], False),
    ],
)
def test_vectors_must_match_text_and_be_computed_or_cached_for_project(
    told: list[Embedded], log: list[str], passes: bool
) -> None:
    assert (not cache_oracle.embedded(told, [Clearing("a", 4, 5)], log)) is passes
