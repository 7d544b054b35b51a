"""How a prompt is made shorter: which turns, messages or middles are left out, and no more of them than it takes.

    truncate_middle   the longest texts lose their middle, all down to the same length; no message goes
    sliding_window    the oldest turns go
    rotate            the first turns stay as an anchor, the oldest after them go, several at a time
    priority          what has the lowest `priority` goes, the oldest of it first: calls of tools, or whole turns
    truncation_auto   OpenAI's `truncation: auto`: what was said goes from the beginning of the conversation
    key_facts         of the older turns only the sentences that matter, as a note to the model
    memory            of the older turns those come back that have to do with the last question

None leaves an orphan: a question goes with its answers, and a call of a tool with its results. `summaries` is the one
strategy that asks the model.

`rotate` is what engines do with their caches, done with turns. That the very first tokens must stay is the finding of
"attention sinks" (Xiao et al., Efficient Streaming Language Models, arXiv:2309.17453); that many go at once is the
`n_keep` and context shift of llama.cpp: the window then begins at the same turn for a while, so that the next requests
of the conversation find their prefix cached, which a window that moves with each turn never does.

`key_facts` scores each sentence, over tf-idf of its words, and takes as many of the best as fit, in their order:

    score = 0.7 * cosine with the last question + 0.3 * cosine with the centre of all the sentences
    tf = 1 + ln(count),  idf = ln(1 + texts / texts that have the word)

The second part is the centroid of MEAD (Radev et al. 2004, Information Processing & Management 40); the first makes it
a summary for the question.

`memory` compares by vectors:

    older turns ──▶ pieces ──┐
    last question ───────────┴──▶ vectors, by a worker that embeds ──▶ turns with the nearest pieces, as many as fit

It searches the conversation itself, as the request has it (with `previous_response_id` and `conversation` that is all
of it); nothing is stored. Without a worker for the embedding model the request waits, or is told to come again, as with
`file_search`: an answer from other turns, by chance, would be worse.
"""

import asyncio
import math
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from jobs.inference.context_options import ContextOptions
from workers.engines.port import Answer
from workers.middleware.history import History, changed, texts
from workers.retrieval.lexical import WIDE

Body = dict[str, Any]
Fits = Callable[[Body], Awaitable[bool]]
Cut = tuple[Body, dict[str, Any]]  # a body that fits, and what is said of how it came about

#: Where no priority is named: calls of tools go before turns, and those in which nothing was asked before the others.
PRIORITIES: Final = {"user": 30.0, "assistant": 20.0}
_OTHERS: Final = 10.0
_FIRST_TURNS: Final = 1


async def least(most: int, fits: Callable[[int], Awaitable[bool]]) -> int | None:
    """The smallest of 0 … most that fits, where whatever is above one that fits does too; None if none does."""
    if not await fits(most):
        return None
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if await fits(middle):
            high = middle
        else:
            low = middle + 1
    return high


async def sliding_window(history: History, terms: ContextOptions, fits: Fits) -> Cut | None:
    older = history.older(terms.kept_turns)
    return await _without_first(history, older, fits)


async def truncation_auto(history: History, _: ContextOptions, fits: Fits) -> Cut | None:
    """The oldest turns go, then the oldest of the last one, but not the question, nor what was said last."""
    last = set(history.turns[-1]) if history.turns else set()
    stay = {history.asked, max(last, default=None)}
    within = [group for group in history.groups if group[0] in last and not stay & set(group)]
    return await _without_first(history, [*history.older(1), *within], fits)


async def rotate(history: History, terms: ContextOptions, fits: Fits) -> Cut | None:
    first = _FIRST_TURNS if terms.keep_first is None else terms.keep_first
    older = history.older(terms.kept_turns)[first:]
    return await _without_first(history, older, fits, aligned=True)


async def priority(history: History, terms: ContextOptions, fits: Fits) -> Cut | None:
    """A call of a tool goes with its results, a question with its answers and all that was called for between them."""
    older = history.older(terms.kept_turns)
    number_of = {n: number for number, turn in enumerate(older) for n in turn}
    calls: list[list[list[int]]] = [[] for _ in older]
    for group in history.groups:
        if group[0] in number_of and history.calls(group):
            calls[number_of[group[0]]].append(group)
    removable = [
        (worth, number, indexes)
        for number, turn in enumerate(older)
        for worth, indexes in _by_worth(history, turn, calls[number])
    ]
    removable.sort(key=lambda one: one[:2])
    return await _without_first(history, [indexes for *_, indexes in removable], fits)


def _by_worth(history: History, turn: list[int], calls: list[list[int]]) -> list[tuple[float, list[int]]]:
    """What of a turn may go by itself: its calls, and then the whole, which is worth as much as any part of it."""
    called = {n for group in calls for n in group}
    said = [n for n in turn if n not in called]
    worths = [_worth(history, group, _OTHERS) for group in calls]
    usual = max((PRIORITIES.get(str(history.items[n].get("role")), _OTHERS) for n in said), default=_OTHERS)
    whole = max([*worths, _worth(history, said, usual)] if said else worths)
    return [*zip(worths, calls, strict=True), (whole, turn)]


def _worth(history: History, indexes: list[int], usual: float) -> float:
    """The highest priority that one of them names."""
    return max((float(history.priorities[n]) for n in indexes if n in history.priorities), default=usual)


async def truncate_middle(history: History, terms: ContextOptions, fits: Fits) -> Cut | None:
    """All to the greatest length of text, in characters, that fits."""
    indexes = {n for turn in history.older(terms.kept_turns) for n in turn}
    longest = max((len(text) for n in indexes for text in texts(history.items[n])), default=0)

    def body(length: int) -> Body:
        items = [
            changed(item, lambda text: _middle_cut(text, length)) if n in indexes else item
            for n, item in enumerate(history.items)
        ]
        return history.with_items(items)

    async def enough(taken: int) -> bool:
        return await fits(body(longest - taken))

    taken = await least(longest, enough)
    if taken is None:
        return None
    left = longest - taken
    shorter = body(left)
    cut = sum(new != old for new, old in zip(history.items_of(shorter), history.items, strict=True))
    return shorter, {"dropped_messages": 0, "cut_messages": cut}


async def _without_first(
    history: History, removable: list[list[int]], fits: Fits, *, aligned: bool = False
) -> Cut | None:
    """Without as many of these as it takes."""

    def dropped(many: int) -> set[int]:
        return {n for group in removable[:many] for n in group}

    many = await least(len(removable), lambda many: fits(history.without(dropped(many))))
    if many is None:
        return None
    if aligned:
        many = _aligned(many, len(removable))
    gone = dropped(many)
    return history.without(gone), {"dropped_messages": len(gone)}


def _aligned(many: int, all_of_them: int) -> int:
    """More, up to a multiple of a power of two that is at most half of what would be left: see above."""
    left = all_of_them - many
    step = 1 << max(0, (left // 2).bit_length() - 1)
    return -(-many // step) * step


def _middle_cut(text: str, length: int) -> str:
    """At most `length` characters of it, from both ends, around a mark that says how many are missing."""
    marked = f"\n[… {len(text) - length:,} characters left out …]\n"
    if len(text) <= length + len(marked):
        return text
    head = length - length // 2
    return f"{text[:head]}{marked}{text[len(text) - length // 2 :]}"


# `key_facts`.

QUESTION: Final = 0.7
CENTRE: Final = 0.3
_FACTS_NOTE: Final = "From earlier in this conversation:"


async def key_facts(history: History, terms: ContextOptions, fits: Fits) -> Cut | None:
    dropped = [n for turn in history.older(terms.kept_turns) for n in turn]
    found, order = await asyncio.to_thread(_ranked, history, dropped)  # of megabytes it takes seconds

    def body(many: int) -> Body:
        kept = [found[n] for n in sorted(order[:many])]
        return history.noted(dropped, _FACTS_NOTE, [f"{speaker}: {sentence}" for speaker, sentence in kept])

    left_out = await least(len(order), lambda fewer: fits(body(len(order) - fewer)))
    if left_out is None:
        return None
    many = len(order) - left_out
    return body(many), {"dropped_messages": len(dropped), "facts": many, "facts_left_out": left_out}


def _ranked(history: History, indexes: list[int]) -> tuple[list[tuple[str, str]], list[int]]:
    """What was said, and by whom, each thing once; and the order of its worth."""
    said = ((history.speaker(n), one) for n in indexes for one in sentences(history.text(n)))
    found = list(dict.fromkeys(said))
    return found, _best_first([sentence for _, sentence in found], history.question)


def _best_first(sentences: list[str], question: str) -> list[int]:
    weighed, asked = weights(sentences, question)
    middle = centre(weighed)
    scores = [QUESTION * cosine(one, asked) + CENTRE * cosine(one, middle) for one in weighed]
    return sorted(range(len(sentences)), key=lambda n: (-scores[n], n))


# Sentences, ranked by their words.

#: Chinese and Japanese write no spaces, and Korean joins its words: there each character is one.
_WIDE: Final = f"{WIDE}\uac00-\ud7af"
_WORD: Final = re.compile(rf"[{_WIDE}]|[^\W_{_WIDE}]+")
#: A full stop is followed by a space; a wide one (of Chinese and Japanese) by nothing.
_END: Final = ".!?\u2026"
_SENTENCE: Final = re.compile(f"(?<=[{_END}])\\s+|(?<=[{_END}][\"')\\]])\\s+|(?<=[\u3002\uff01\uff1f])|\\n+")

Weights = dict[str, float]  # of words; their squares add up to 1


def sentences(text: str) -> list[str]:
    return [part for part in (piece.strip() for piece in _SENTENCE.split(text) if piece) if _WORD.search(part)]


def words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.casefold()))


def weights(texts: Sequence[str], question: str) -> tuple[list[Weights], Weights]:
    """Of the texts and of the question, words being as rare as they are in the texts."""
    counted = [words(text) for text in texts]
    having: Counter[str] = Counter()
    for one in counted:
        having.update(one.keys())
    rare = {word: math.log(1 + len(texts) / many) for word, many in having.items()}
    return [_weighted(one, rare) for one in counted], _weighted(words(question), rare)


def centre(of: Iterable[Weights]) -> Weights:
    """What all of them are about."""
    total: Weights = {}
    for one in of:
        for word, weight in one.items():
            total[word] = total.get(word, 0.0) + weight
    return _unit(total)


def cosine(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    if len(one) > len(other):
        one, other = other, one
    return math.fsum(weight * other.get(word, 0.0) for word, weight in one.items())


def _weighted(counted: Counter[str], rare: Mapping[str, float]) -> Weights:
    return _unit({word: (1 + math.log(count)) * rare[word] for word, count in counted.items() if word in rare})


def _unit(raw: Weights) -> Weights:
    norm = math.sqrt(math.fsum(value * value for value in raw.values()))
    return {word: value / norm for word, value in raw.items()} if norm else {}


# `memory`.

#: Of the best turns so many are tried; each costs a count of the prompt.
MAX_TRIED_TURNS: Final = 64
#: Of each turn so many pieces are embedded that all turns have about this many.
_PIECES: Final = 2048

Vectors = Sequence[NDArray[np.float32]]
#: One vector of length 1 for each text, by the model that the terms name; an Answer is a refusal. Raises EngineBusy.
Embed = Callable[[Sequence[str]], Awaitable[Vectors | Answer]]


async def memory(
    history: History, terms: ContextOptions, fits: Fits, embed: Embed, piece_bytes: int
) -> Cut | Answer | None:
    older = history.older(terms.kept_turns)
    every = [n for turn in older for n in turn]
    if not await fits(history.without(every)):
        return None
    each = max(1, _PIECES // max(1, len(older)))
    said = [_pieces(_text(history, turn), piece_bytes)[:each] for turn in older]
    pieces = [(number, one) for number, some in enumerate(said) for one in some]
    question = _pieces(history.question, piece_bytes)[:1]
    if not pieces or not question:
        return history.without(every), _report(every, 0)
    vectors = await embed([*question, *(text for _, text in pieces)])
    if isinstance(vectors, Answer):
        return vectors
    near: dict[int, float] = {}
    for (number, _), vector in zip(pieces, vectors[1:], strict=True):
        near[number] = max(near.get(number, -1.0), float(vector @ vectors[0]))
    best = sorted(near, key=lambda number: (-near[number], number))[:MAX_TRIED_TURNS]
    return await _as_many(history, older, best, fits)


async def _as_many(history: History, older: list[list[int]], best: list[int], fits: Fits) -> Cut:
    """The best first; one that is too long is passed over."""
    back: set[int] = set()
    for number in best:
        if await fits(history.without(_turns_without(older, back | {number}))):
            back.add(number)
    dropped = _turns_without(older, back)
    return history.without(dropped), _report(dropped, len(back))


def _turns_without(older: list[list[int]], back: set[int]) -> list[int]:
    return [n for number, turn in enumerate(older) if number not in back for n in turn]


def _report(dropped: list[int], back: int) -> dict[str, int]:
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
