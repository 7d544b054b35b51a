"""The strategies that shorten a prompt until it fits, and leave out no more than necessary.

    truncate_middle   cut the middle of the longest texts, all to the same length; drop no message
    sliding_window    drop the oldest turns
    rotate            keep the first turns as an anchor, and drop the oldest after them, several at a time
    priority          drop the lowest `priority` first, oldest first: tool calls, or whole turns
    truncation_auto   OpenAI's `truncation: auto`: drop items from the beginning of the conversation
    key_facts         replace older turns by a note with their most relevant sentences
    memory            drop older turns, except those that are related to the last question

A question is dropped together with its answers, and a tool call together with its results. The strategy of `summaries`
is the only one that asks the model.

`rotate` applies to turns what engines do with their caches. The first tokens stay because of "attention sinks" (Xiao et
al., Efficient Streaming Language Models, arXiv:2309.17453). Several turns are dropped at once, like the `n_keep` and
context shift of llama.cpp: the window begins at the same turn for several requests, so that their prefix is cached.

`key_facts` scores each sentence by tf-idf of its words, and takes as many of the best as fit, in their original order:

    score = 0.7 * cosine with the last question + 0.3 * cosine with the centre of all the sentences
    tf = 1 + ln(count),  idf = ln(1 + texts / texts that have the word)

The second term is the centroid of MEAD (Radev et al. 2004, Information Processing & Management 40). The first term
favours sentences that concern the question.

`memory` compares by vectors:

    older turns ──▶ pieces ──┐
    last question ───────────┴──▶ vectors, by an embedding worker ──▶ turns with the nearest pieces, as many as fit

It searches the conversation of the request (with `previous_response_id` and `conversation` the whole one) and stores
nothing. Without a worker for the embedding model the request waits or gets 503, as with `file_search`: an answer from
arbitrary turns would be worse.
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
from jobs.retrieval.words import WIDE
from workers.engines.port import Answer
from workers.middleware.history import History, change_texts, texts

Body = dict[str, Any]
Fits = Callable[[Body], Awaitable[bool]]
Cut = tuple[Body, dict[str, Any]]  # a body that fits, and the report for the client

#: Defaults for messages without a priority: tool calls go first, then turns without a question, then the others.
PRIORITIES: Final = {"user": 30.0, "assistant": 20.0}
_OTHERS: Final = 10.0
_FIRST_TURNS: Final = 1


async def smallest_fit(limit: int, fits: Callable[[int], Awaitable[bool]]) -> int | None:
    """Return the smallest of 0 … `limit` for which `fits` is true; None if there is none.

    `fits` must stay true above the first number for which it is true.
    """
    if not await fits(limit):
        return None
    low, high = 0, limit
    while low < high:
        middle = (low + high) // 2
        if await fits(middle):
            high = middle
        else:
            low = middle + 1
    return high


async def sliding_window(history: History, terms: ContextOptions, fits: Fits) -> Cut | None:
    older = history.older_turns(terms.kept_turns)
    return await _drop_groups(history, older, fits)


async def truncation_auto(history: History, _: ContextOptions, fits: Fits) -> Cut | None:
    """Drop the oldest turns, then the oldest items of the last turn, except the question and the last item."""
    last = set(history.turns[-1]) if history.turns else set()
    stay = {history.question_index, max(last, default=None)}
    within = [group for group in history.groups if group[0] in last and not stay & set(group)]
    return await _drop_groups(history, [*history.older_turns(1), *within], fits)


async def rotate(history: History, terms: ContextOptions, fits: Fits) -> Cut | None:
    first = _FIRST_TURNS if terms.keep_first is None else terms.keep_first
    older = history.older_turns(terms.kept_turns)[first:]
    return await _drop_groups(history, older, fits, aligned=True)


async def priority(history: History, terms: ContextOptions, fits: Fits) -> Cut | None:
    """Drop the lowest priority first: a tool call with its results, a question with everything up to the next one."""
    older = history.older_turns(terms.kept_turns)
    number_of = {n: number for number, turn in enumerate(older) for n in turn}
    calls: list[list[list[int]]] = [[] for _ in older]
    for group in history.groups:
        if group[0] in number_of and history.is_tool_call(group):
            calls[number_of[group[0]]].append(group)
    removable = [
        (worth, number, indexes)
        for number, turn in enumerate(older)
        for worth, indexes in _parts_of_turn(history, turn, calls[number])
    ]
    removable.sort(key=lambda entry: entry[:2])
    return await _drop_groups(history, [indexes for *_, indexes in removable], fits)


def _parts_of_turn(history: History, turn: list[int], calls: list[list[int]]) -> list[tuple[float, list[int]]]:
    """Return the parts of a turn with their priorities: its tool calls, then the whole turn.

    The whole turn has the highest priority of its parts.
    """
    called = {n for group in calls for n in group}
    messages = [n for n in turn if n not in called]
    worths = [_worth(history, group, _OTHERS) for group in calls]
    usual = max((PRIORITIES.get(str(history.items[n].get("role")), _OTHERS) for n in messages), default=_OTHERS)
    whole = max([*worths, _worth(history, messages, usual)] if messages else worths)
    return [*zip(worths, calls, strict=True), (whole, turn)]


def _worth(history: History, indexes: list[int], usual: float) -> float:
    """Return the highest priority among the items; `usual` if none has one."""
    return max((float(history.priorities[n]) for n in indexes if n in history.priorities), default=usual)


async def truncate_middle(history: History, terms: ContextOptions, fits: Fits) -> Cut | None:
    """Cut all texts to the greatest length, in characters, that fits."""
    indexes = {n for turn in history.older_turns(terms.kept_turns) for n in turn}
    longest = max((len(text) for n in indexes for text in texts(history.items[n])), default=0)

    def body(length: int) -> Body:
        items = [
            change_texts(item, lambda text: _cut_middle(text, length)) if n in indexes else item
            for n, item in enumerate(history.items)
        ]
        return history.with_items(items)

    async def enough(taken: int) -> bool:
        return await fits(body(longest - taken))

    taken = await smallest_fit(longest, enough)
    if taken is None:
        return None
    left = longest - taken
    shorter = body(left)
    cut = sum(new != old for new, old in zip(history.items_of(shorter), history.items, strict=True))
    return shorter, {"dropped_messages": 0, "cut_messages": cut}


async def _drop_groups(
    history: History, removable: list[list[int]], fits: Fits, *, aligned: bool = False
) -> Cut | None:
    """Drop as few of the first `removable` groups as possible."""

    def dropped(many: int) -> set[int]:
        return {n for group in removable[:many] for n in group}

    many = await smallest_fit(len(removable), lambda many: fits(history.drop_items(dropped(many))))
    if many is None:
        return None
    if aligned:
        many = _align(many, len(removable))
    removed = dropped(many)
    return history.drop_items(removed), {"dropped_messages": len(removed)}


def _align(many: int, all_of_them: int) -> int:
    """Round the number of dropped groups up to a multiple of a power of two (at most half of the remaining ones).

    So the window begins at the same turn for several requests; see the module.
    """
    left = all_of_them - many
    step = 1 << max(0, (left // 2).bit_length() - 1)
    return -(-many // step) * step


def _cut_middle(text: str, length: int) -> str:
    """Return at most `length` characters of both ends of `text`, around a mark with the number of missing ones."""
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
    dropped = [n for turn in history.older_turns(terms.kept_turns) for n in turn]
    sentences_said, order = await asyncio.to_thread(_rank_sentences, history, dropped)  # takes seconds for megabytes

    def body(many: int) -> Body:
        selected = [sentences_said[n] for n in sorted(order[:many])]
        return history.add_note(dropped, _FACTS_NOTE, [f"{speaker}: {sentence}" for speaker, sentence in selected])

    left_out = await smallest_fit(len(order), lambda fewer: fits(body(len(order) - fewer)))
    if left_out is None:
        return None
    many = len(order) - left_out
    return body(many), {"dropped_messages": len(dropped), "facts": many, "facts_left_out": left_out}


def _rank_sentences(history: History, indexes: list[int]) -> tuple[list[tuple[str, str]], list[int]]:
    """Return each distinct sentence with its speaker, and the indexes of the sentences, most relevant first."""
    spoken = ((history.speaker(n), sentence) for n in indexes for sentence in sentences(history.text(n)))
    distinct_sentences = list(dict.fromkeys(spoken))
    return distinct_sentences, _order_sentences([sentence for _, sentence in distinct_sentences], history.question)


def _order_sentences(sentences: list[str], question: str) -> list[int]:
    weighed, question_weights = weights(sentences, question)
    middle = centre(weighed)
    scores = [
        QUESTION * cosine(sentence_weights, question_weights) + CENTRE * cosine(sentence_weights, middle)
        for sentence_weights in weighed
    ]
    return sorted(range(len(sentences)), key=lambda n: (-scores[n], n))


# Sentences, ranked by their words.

#: Chinese and Japanese write no spaces, and Korean joins words: each of their characters counts as a word.
_WIDE: Final = f"{WIDE}\uac00-\ud7af"
_WORD: Final = re.compile(rf"[{_WIDE}]|[^\W_{_WIDE}]+")
#: A full stop is followed by a space; a wide one (Chinese, Japanese) need not be.
_END: Final = ".!?\u2026"
_SENTENCE: Final = re.compile(f"(?<=[{_END}])\\s+|(?<=[{_END}][\"')\\]])\\s+|(?<=[\u3002\uff01\uff1f])|\\n+")

Weights = dict[str, float]  # of words; their squares add up to 1


def sentences(text: str) -> list[str]:
    return [part for part in (piece.strip() for piece in _SENTENCE.split(text) if piece) if _WORD.search(part)]


def words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.casefold()))


def weights(texts: Sequence[str], question: str) -> tuple[list[Weights], Weights]:
    """Return tf-idf weights of each text and of the question; the document frequencies come from `texts`."""
    counted = [words(text) for text in texts]
    having: Counter[str] = Counter()
    for counts in counted:
        having.update(counts.keys())
    rare = {word: math.log(1 + len(texts) / many) for word, many in having.items()}
    return [_weigh(counts, rare) for counts in counted], _weigh(words(question), rare)


def centre(of: Iterable[Weights]) -> Weights:
    """Return the normalized sum of the weights."""
    total: Weights = {}
    for weights in of:
        for word, weight in weights.items():
            total[word] = total.get(word, 0.0) + weight
    return _unit(total)


def cosine(left: Mapping[str, float], right: Mapping[str, float]) -> float:
    if len(left) > len(right):
        left, right = right, left
    return math.fsum(weight * right.get(word, 0.0) for word, weight in left.items())


def _weigh(counted: Counter[str], rare: Mapping[str, float]) -> Weights:
    return _unit({word: (1 + math.log(count)) * rare[word] for word, count in counted.items() if word in rare})


def _unit(raw: Weights) -> Weights:
    norm = math.sqrt(math.fsum(value * value for value in raw.values()))
    return {word: value / norm for word, value in raw.items()} if norm else {}


# `memory`.

#: How many of the best turns are tried; each costs one count of the prompt's tokens.
MAX_TRIED_TURNS: Final = 64
#: About how many pieces of all turns together are embedded.
_PIECES: Final = 2048

Vectors = Sequence[NDArray[np.float32]]
#: Returns a normalized vector for each text, by the model of the options, or a refusal. Raises EngineBusy.
Embed = Callable[[Sequence[str]], Awaitable[Vectors | Answer]]


async def memory(
    history: History, terms: ContextOptions, fits: Fits, embed: Embed, piece_bytes: int
) -> Cut | Answer | None:
    older = history.older_turns(terms.kept_turns)
    every = [n for turn in older for n in turn]
    if not await fits(history.drop_items(every)):
        return None
    each = max(1, _PIECES // max(1, len(older)))
    pieces_of_turn = [_pieces(_text(history, turn), piece_bytes)[:each] for turn in older]
    pieces = [(number, piece) for number, some in enumerate(pieces_of_turn) for piece in some]
    question = _pieces(history.question, piece_bytes)[:1]
    if not pieces or not question:
        return history.drop_items(every), _report(every, 0)
    vectors = await embed([*question, *(text for _, text in pieces)])
    if isinstance(vectors, Answer):
        return vectors
    near: dict[int, float] = {}
    for (number, _), vector in zip(pieces, vectors[1:], strict=True):
        near[number] = max(near.get(number, -1.0), float(vector @ vectors[0]))
    best = sorted(near, key=lambda number: (-near[number], number))[:MAX_TRIED_TURNS]
    return await _recall_turns(history, older, best, fits)


async def _recall_turns(history: History, older: list[list[int]], best: list[int], fits: Fits) -> Cut:
    """Take back turns, best first, and skip those that do not fit."""
    back: set[int] = set()
    for number in best:
        if await fits(history.drop_items(_indexes_to_drop(older, back | {number}))):
            back.add(number)
    dropped = _indexes_to_drop(older, back)
    return history.drop_items(dropped), _report(dropped, len(back))


def _indexes_to_drop(older: list[list[int]], back: set[int]) -> list[int]:
    return [n for number, turn in enumerate(older) if number not in back for n in turn]


def _report(dropped: list[int], back: int) -> dict[str, int]:
    return {"dropped_messages": len(dropped), "recalled_turns": back}


def _text(history: History, turn: list[int]) -> str:
    return "\n".join(history.text(n) for n in turn)


def _pieces(text: str, max_bytes: int) -> list[str]:
    """Split `text` into pieces of at most `most` bytes, between words if possible; no token is shorter than a byte."""
    pieces: list[str] = []
    begun, size = "", 0
    for word in (part for whole in text.split() for part in _slices(whole, max_bytes)):
        length = len(word.encode(errors="replace")) + 1
        if begun and size + length > max_bytes:
            pieces.append(begun)
            begun, size = "", 0
        begun = f"{begun} {word}" if begun else word
        size += length
    return [*pieces, begun] if begun else pieces


def _slices(word: str, max_bytes: int) -> list[str]:
    step = max(1, max_bytes // 4)  # a character has four bytes at most
    return [word[at : at + step] for at in range(0, len(word), step)] if len(word) > step else [word]
