"""Clients of the cache: requests of a run are counted apart from those at its end."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos.journal import Journal
from tests.chaos.repeaters import Repeater
from tests.support import recalled

pytestmark = pytest.mark.verify


class _Sdk:
    """A deployment whose cache works, or does not."""

    def __init__(self, *, dead: bool) -> None:
        self._dead, self._known, self.clearings = dead, set[str](), 0
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._chat))
        self.completions = SimpleNamespace(create=self._text)
        self.responses = SimpleNamespace(create=self._response)
        self.embeddings = SimpleNamespace(create=self._embed)

    def delete(self, *_: Any, **__: Any) -> None:
        self._known.clear()
        self.clearings += 1

    def _is_cached(self, what: str) -> bool:
        cached = what in self._known
        self._known |= set() if self._dead else {what}
        return cached

    def _chat(self, **asked: Any) -> Any:
        choice = SimpleNamespace(message=SimpleNamespace(content="x"))
        return SimpleNamespace(choices=[choice], model_extra={"cached": self._is_cached(f"chat {asked['messages']}")})

    def _text(self, **asked: Any) -> Any:
        choice = SimpleNamespace(text="x")
        return SimpleNamespace(choices=[choice], model_extra={"cached": self._is_cached(f"text {asked['prompt']}")})

    def _response(self, **asked: Any) -> Any:
        return SimpleNamespace(output_text="x", model_extra={"cached": self._is_cached(f"said {asked['input']}")})

    def _embed(self, **asked: Any) -> Any:
        details = {"cached_tokens": 4 * self._is_cached(f"embedded {asked['input']}")}
        usage = SimpleNamespace(prompt_tokens=4, model_extra={"prompt_tokens_details": details})
        return SimpleNamespace(data=[SimpleNamespace(embedding=[1.0])], usage=usage)


def _repeater(sdk: _Sdk) -> Repeater:
    client: Any = SimpleNamespace(sdk=sdk)
    return Repeater(client, Journal(1), random.Random(1), "ours", written_seconds=0.0)


def test_checks_at_the_end_use_new_prompts_and_forget_the_run() -> None:
    one = _repeater(_Sdk(dead=False))

    told = one.all_anew(5)

    assert (one.answers, one.vectors, one.clearings) == ([], [], [])
    assert len(told.answers) == 2
    assert recalled.anew(told) == []


def test_a_cache_that_is_dead_at_the_end_is_found() -> None:
    told = _repeater(_Sdk(dead=True)).all_anew(0.1)

    assert len(recalled.anew(told)) == 4  # three answers and a vector
    assert all("still not cached" in one for one in recalled.anew(told))


def test_the_cache_is_cleared_again_and_again() -> None:
    sdk = _Sdk(dead=False)
    one = _repeater(sdk)
    for _ in range(160):
        one.step()

    assert sdk.clearings == len(one.clearings) >= 10
