"""Strategies that only leave out: which turns, messages or middles, and no more of them than it takes.

    truncate_middle   the longest texts lose their middle, all down to the same length; no message goes
    sliding_window    the oldest turns go
    rotate            the first turns stay as an anchor, the oldest after them go, several at a time
    priority          the messages of the lowest `priority` go, the oldest of these first
    truncation_auto   OpenAI's `truncation: auto`: items go from the beginning of the conversation

`rotate` is what engines do with their caches, done with turns. That the very first tokens must stay is the finding of
"attention sinks" (Xiao et al., Efficient Streaming Language Models, arXiv:2309.17453); that many go at once is the
`n_keep` and context shift of llama.cpp: the window then begins at the same turn for a while, so that the next requests
of the conversation find their prefix cached, which a window that moves with each turn never does.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from jobs.terms import Terms
from workers.fitting.history import History, changed, texts

Body = dict[str, Any]
Fits = Callable[[Body], Awaitable[bool]]
Cut = tuple[Body, dict[str, Any]]  # a body that fits, and what is said of how it came about

#: Of a message that names none: results of tools go before answers, answers before questions.
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


async def sliding_window(history: History, terms: Terms, fits: Fits) -> Cut | None:
    older = history.older(terms.kept_turns)
    return await _without_first(history, older, fits)


async def truncation_auto(history: History, _: Terms, fits: Fits) -> Cut | None:
    """Items go from the beginning, whatever their turn, but not the question, nor what was said last."""
    loose = [group for group in history.groups[:-1] if history.asked not in group]
    return await _without_first(history, loose, fits)


async def rotate(history: History, terms: Terms, fits: Fits) -> Cut | None:
    first = _FIRST_TURNS if terms.keep_first is None else terms.keep_first
    older = history.older(terms.kept_turns)[first:]
    return await _without_first(history, older, fits, aligned=True)


async def priority(history: History, terms: Terms, fits: Fits) -> Cut | None:
    stay = {n for turn in history.turns[len(history.older(terms.kept_turns)) :] for n in turn}
    loose = [group for group in history.groups if not stay & set(group)]
    loose.sort(key=lambda group: (max(_priority(history, n) for n in group), group[0]))
    return await _without_first(history, loose, fits)


async def truncate_middle(history: History, terms: Terms, fits: Fits) -> Cut | None:
    """All to the greatest length of text, in characters, that fits."""
    places = {n for turn in history.older(terms.kept_turns) for n in turn}
    longest = max((len(text) for n in places for text in texts(history.items[n])), default=0)

    def body(length: int) -> Body:
        items = [
            changed(item, lambda text: _middle_cut(text, length)) if n in places else item
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


async def _without_first(history: History, loose: list[list[int]], fits: Fits, *, aligned: bool = False) -> Cut | None:
    """Without as many of these as it takes."""

    def dropped(many: int) -> list[int]:
        return [n for group in loose[:many] for n in group]

    many = await least(len(loose), lambda many: fits(history.without(dropped(many))))
    if many is None:
        return None
    if aligned:
        many = _aligned(many, len(loose))
    gone = dropped(many)
    return history.without(gone), {"dropped_messages": len(gone)}


def _aligned(many: int, all_of_them: int) -> int:
    """More, up to a multiple of a power of two that is at most half of what would be left: see above."""
    left = all_of_them - many
    step = 1 << max(0, (left // 2).bit_length() - 1)
    return -(-many // step) * step


def _priority(history: History, n: int) -> float:
    usual = PRIORITIES.get(str(history.items[n].get("role")), _OTHERS)
    return float(history.priorities.get(n, usual))


def _middle_cut(text: str, length: int) -> str:
    """At most `length` characters of it, from both ends, around a mark that says how many are missing."""
    marked = f"\n[… {len(text) - length:,} characters left out …]\n"
    if len(text) <= length + len(marked):
        return text
    head = length - length // 2
    return f"{text[:head]}{marked}{text[len(text) - length // 2 :]}"
