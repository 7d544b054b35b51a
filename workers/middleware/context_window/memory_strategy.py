"""`memory`: of the older turns those come back, whole and in their order, that have to do with the last question.

    older turns ──▶ pieces ──┐
    last question ───────────┴──▶ vectors, by a worker that embeds ──▶ turns with the nearest pieces, as many as fit

The store that they are found in is the conversation itself, as the request has it (with `previous_response_id` and
`conversation` that is all of it); nothing is kept. Without a worker for the embedding model the request waits, or is
told to come again, as with `file_search`: an answer from other turns, by chance, would be worse.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.inference.context_options import Terms
from workers.engines.port import Answer
from workers.middleware.context_window.history import History
from workers.middleware.context_window.truncation import Cut, Fits

#: Of the best turns so many are tried; each costs a count of the prompt.
MOST_TRIED: Final = 64
#: Of each turn so many pieces are embedded that all turns have about this many.
_PIECES: Final = 2048

Vectors = Sequence[NDArray[np.float32]]
#: One vector of length 1 for each text, by the model that the terms name; an Answer is a refusal. Raises EngineBusy.
Embed = Callable[[Sequence[str]], Awaitable[Vectors | Answer]]


async def memory(history: History, terms: Terms, fits: Fits, embed: Embed, piece_bytes: int) -> Cut | Answer | None:
    older = history.older(terms.kept_turns)
    every = [n for turn in older for n in turn]
    if not await fits(history.without(every)):
        return None
    each = max(1, _PIECES // max(1, len(older)))
    said = [_pieces(_text(history, turn), piece_bytes)[:each] for turn in older]
    pieces = [(number, one) for number, some in enumerate(said) for one in some]
    question = _pieces(history.question, piece_bytes)[:1]
    if not pieces or not question:
        return history.without(every), _told(every, 0)
    vectors = await embed([*question, *(text for _, text in pieces)])
    if isinstance(vectors, Answer):
        return vectors
    near: dict[int, float] = {}
    for (number, _), vector in zip(pieces, vectors[1:], strict=True):
        near[number] = max(near.get(number, -1.0), float(vector @ vectors[0]))
    best = sorted(near, key=lambda number: (-near[number], number))[:MOST_TRIED]
    return await _as_many(history, older, best, fits)


async def _as_many(history: History, older: list[list[int]], best: list[int], fits: Fits) -> Cut:
    """The best first; one that is too long is passed over."""
    back: set[int] = set()
    for number in best:
        if await fits(history.without(_without(older, back | {number}))):
            back.add(number)
    dropped = _without(older, back)
    return history.without(dropped), _told(dropped, len(back))


def _without(older: list[list[int]], back: set[int]) -> list[int]:
    return [n for number, turn in enumerate(older) if number not in back for n in turn]


def _told(dropped: list[int], back: int) -> dict[str, int]:
    return {"dropped_messages": len(dropped), "recalled_turns": back}


def _text(history: History, turn: list[int]) -> str:
    return "\n".join(history.text(n) for n in turn)


def _pieces(text: str, most: int) -> list[str]:
    """Of at most so many bytes, cut between words where there are any: no token is shorter than a byte."""
    found: list[str] = []
    begun, size = "", 0
    for word in (part for whole in text.split() for part in _slices(whole, most)):
        length = len(word.encode(errors="replace")) + 1
        if begun and size + length > most:
            found.append(begun)
            begun, size = "", 0
        begun = f"{begun} {word}" if begun else word
        size += length
    return [*found, begun] if begun else found


def _slices(word: str, most: int) -> list[str]:
    step = max(1, most // 4)  # a character has four bytes at most
    return [word[at : at + step] for at in range(0, len(word), step)] if len(word) > step else [word]
