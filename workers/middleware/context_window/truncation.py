"""Strategies that only leave out: which turns, messages or middles, and no more of them than it takes.

    truncate_middle   the longest texts lose their middle, all down to the same length; no message goes
    sliding_window    the oldest turns go
    rotate            the first turns stay as an anchor, the oldest after them go, several at a time
    priority          what has the lowest `priority` goes, the oldest of it first: calls of tools, or whole turns
    truncation_auto   OpenAI's `truncation: auto`: what was said goes from the beginning of the conversation

None leaves an orphan: a question goes with its answers, and a call of a tool with its results.

`rotate` is what engines do with their caches, done with turns. That the very first tokens must stay is the finding of
"attention sinks" (Xiao et al., Efficient Streaming Language Models, arXiv:2309.17453); that many go at once is the
`n_keep` and context shift of llama.cpp: the window then begins at the same turn for a while, so that the next requests
of the conversation find their prefix cached, which a window that moves with each turn never does.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from jobs.inference.context_options import Terms
from workers.middleware.context_window.history import History, changed, texts

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


async def sliding_window(history: History, terms: Terms, fits: Fits) -> Cut | None:
    older = history.older(terms.kept_turns)
    return await _without_first(history, older, fits)


async def truncation_auto(history: History, _: Terms, fits: Fits) -> Cut | None:
    """The oldest turns go, then the oldest of the last one, but not the question, nor what was said last."""
    last = set(history.turns[-1]) if history.turns else set()
    stay = {history.asked, max(last, default=None)}
    within = [group for group in history.groups if group[0] in last and not stay & set(group)]
    return await _without_first(history, [*history.older(1), *within], fits)


async def rotate(history: History, terms: Terms, fits: Fits) -> Cut | None:
    first = _FIRST_TURNS if terms.keep_first is None else terms.keep_first
    older = history.older(terms.kept_turns)[first:]
    return await _without_first(history, older, fits, aligned=True)


async def priority(history: History, terms: Terms, fits: Fits) -> Cut | None:
    """A call of a tool goes with its results, a question with its answers and all that was called for between them."""
    older = history.older(terms.kept_turns)
    number_of = {n: number for number, turn in enumerate(older) for n in turn}
    calls: list[list[list[int]]] = [[] for _ in older]
    for group in history.groups:
        if group[0] in number_of and history.calls(group):
            calls[number_of[group[0]]].append(group)
    loose = [
        (worth, number, places)
        for number, turn in enumerate(older)
        for worth, places in _by_worth(history, turn, calls[number])
    ]
    loose.sort(key=lambda one: one[:2])
    return await _without_first(history, [places for *_, places in loose], fits)


def _by_worth(history: History, turn: list[int], calls: list[list[int]]) -> list[tuple[float, list[int]]]:
    """What of a turn may go by itself: its calls, and then the whole, which is worth as much as any part of it."""
    called = {n for group in calls for n in group}
    said = [n for n in turn if n not in called]
    worths = [_worth(history, group, _OTHERS) for group in calls]
    usual = max((PRIORITIES.get(str(history.items[n].get("role")), _OTHERS) for n in said), default=_OTHERS)
    whole = max([*worths, _worth(history, said, usual)] if said else worths)
    return [*zip(worths, calls, strict=True), (whole, turn)]


def _worth(history: History, places: list[int], usual: float) -> float:
    """The highest priority that one of them names."""
    return max((float(history.priorities[n]) for n in places if n in history.priorities), default=usual)


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

    def dropped(many: int) -> set[int]:
        return {n for group in loose[:many] for n in group}

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


def _middle_cut(text: str, length: int) -> str:
    """At most `length` characters of it, from both ends, around a mark that says how many are missing."""
    marked = f"\n[… {len(text) - length:,} characters left out …]\n"
    if len(text) <= length + len(marked):
        return text
    head = length - length // 2
    return f"{text[:head]}{marked}{text[len(text) - length // 2 :]}"
