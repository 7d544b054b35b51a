"""Decode token ids of OpenAI's embedding models where another model answers under their names.

    model: an alias, one of OpenAI's names ── input: token ids ──▶ cl100k_base ──▶ texts ──▶ engine
    any other name ───────────────────────────────────────────────────────────▶ as it is ──▶ engine

Clients such as LangChain tokenize a text themselves, with the vocabulary of OpenAI's model. The model behind the alias
has another vocabulary, in which the same ids are another text. A model's own name takes ids of its own vocabulary.
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
    """Decode token ids for models behind OpenAI's names. `is_alias` tells whether a name is an alias."""

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
    """Return whether all inputs are non-empty lists; the engine refuses a mixture or an empty list."""
    return all(isinstance(ids, list) and ids for ids in inputs)


def _decode_all(inputs: Sequence[Sequence[Any]]) -> list[str]:
    return [_decode(n, ids) for n, ids in enumerate(inputs)]


def _decode(n: int, ids: Sequence[Any]) -> str:
    """Return the text of `ids`; a character that the client has cut becomes U+FFFD.

    Raises:
        ValueError: an id is not in the table.
    """
    table = _table()
    wrong = next((token_id for token_id in ids if type(token_id) is not int or not 0 <= token_id < table.n_vocab), None)
    if wrong is not None:
        raise ValueError(f"input {n} has the token id {wrong!r:.40}, which {_TABLE} does not have.")
    try:
        text: str = table.decode(ids)
    except KeyError as error:  # a few numbers below `n_vocab` are no token
        raise ValueError(f"input {n} has a token id that {_TABLE} does not have.") from error
    return text


@cache
def _table() -> Any:
    return bpe_openai.get_encoding(_TABLE)
