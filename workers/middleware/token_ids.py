"""Decode token ids of OpenAI's embedding models where another model answers under their names.

    model: an alias, one of OpenAI's names ── input: token ids ──▶ cl100k_base ──▶ texts ──▶ engine
    any other name ───────────────────────────────────────────────────────────▶ as it is ──▶ engine

Clients such as LangChain's tokenize a text themselves, by the table that belongs to the name they ask for. The model
that answers has a table of its own, in which the same ids are another text. A model's own name takes its own ids.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Final

import bpe_openai

from jobs.requests.endpoints import EMBEDDINGS
from workers.engines.encoders.embed import inputs_of
from workers.engines.port import Answer, Engine, Request, refusal
from workers.middleware.base import Middleware

NAMES: Final = frozenset({"text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"})
_TABLE: Final = "cl100k_base"  # of all three


class TokenIdMiddleware(Middleware):
    """An engine that is given texts. `is_alias` tells whether a name stands for a model with another name."""

    def __init__(self, engine: Engine, is_alias: Callable[[str], bool]) -> None:
        super().__init__(engine)
        self._is_alias = is_alias

    def concerns(self, request: Request) -> bool:
        return request.url == EMBEDDINGS

    async def handle(self, request: Request) -> Answer:
        name, inputs = request.body.get("model"), inputs_of(request.body.get("input"))
        if name not in NAMES or not inputs or not _has_ids(inputs) or not self._is_alias(name):
            return await self.engine.answer(request)
        try:
            texts = await asyncio.to_thread(_decode_all, inputs)  # the table takes a second to read
        except ValueError as error:
            return refusal(400, f"Invalid 'input': {error}", param="input", code="invalid_value")
        return await self.engine.answer(replace(request, body={**request.body, "input": texts}))


def _has_ids(inputs: Sequence[Any]) -> bool:
    """Tell whether all inputs are lists; the engine says what is wrong with a mixture or an empty list."""
    return all(isinstance(ids, list) and ids for ids in inputs)


def _decode_all(inputs: Sequence[Sequence[Any]]) -> list[str]:
    return [_decode(n, ids) for n, ids in enumerate(inputs)]


def _decode(n: int, ids: Sequence[Any]) -> str:
    """Return the text of `ids`. A client may cut a text inside a character: what is left of that is U+FFFD.

    Raises:
        ValueError: an id is not in the table.
    """
    table = _table()
    wrong = next((one for one in ids if type(one) is not int or not 0 <= one < table.n_vocab), None)
    if wrong is not None:
        raise ValueError(f"input {n} has the token id {wrong!r:.40}, which {_TABLE} does not have.")
    try:
        text: str = table.decode(ids)
    except KeyError as error:  # one of the few numbers below the last that are no token
        raise ValueError(f"input {n} has a token id that {_TABLE} does not have.") from error
    return text


@cache
def _table() -> Any:
    return bpe_openai.get_encoding(_TABLE)
