"""The excerpts that a model is shown, and those of them that its answer rests on.

    context less question and answer ─▶ room ─▶ by rank, each that still fits ─▶ neighbours of one file put together

Chunks of a file that follow each other are shown in its order, and what two of them share is shown once.

An answer's text gets `file_citation` annotations:

    "It purrs [1]."      the model names them: a citation where each marker stands, unless the excerpt has no word of
                         what was said there
    "It purrs."          it names none: the excerpt that has most of the answer's words, if it has a third of them

Beside OpenAI's fields a citation has `chunk`, `start` and `end`: which chunk of the file, and which characters of the
file's content the excerpt is; and `support`, the share of the words said there that stand in it. Where no spaces are
written, a word said is a character with its neighbours, and stands there if a pair of them does:

    "享有三十天"          有三, 三十 and 十天 stand in "有三十天的年假": four of five characters
"""

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from tokenizers import Tokenizer

from jobs.errors import InvalidRequest
from jobs.inference.context_options import AUTO, context_options_of, reserved
from jobs.requests.endpoints import RESPONSES
from jobs.retrieval.searches import Found
from workers.middleware.quoting import excerpt
from workers.retrieval import lexical

_ANSWER: Final = 1024  # tokens, of an answer whose length nobody has limited; a quarter of a small context
_FRAME: Final = 160  # of the chat's template, and of what is said of the excerpts
_BETWEEN: Final = 2  # one excerpt and the next
_LEAST: Final = 88  # of the best excerpt, whatever the room
_BYTES: Final = 4  # a token, where it cannot be counted
_MEDIA: Final = re.compile(r"data:[\w.+/-]+;base64,[\w+/=-]+")  # no text: what a picture takes its model alone knows


@dataclass(frozen=True, slots=True)
class ContextBudget:
    """A model's context in tokens, and how they are counted: without a tokenizer at four bytes each."""

    context: int
    tokenizer: Tokenizer | None = None

    def count(self, text: str) -> int:
        if self.tokenizer is None:
            return -(-len(text.encode()) // _BYTES)
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def left(self, body: Mapping[str, Any]) -> int:
        """What the question and its answer leave."""
        wanted = body.get("max_output_tokens")
        answer = wanted if isinstance(wanted, int) else min(_ANSWER, self.context // 4)
        said = msgspec.json.encode([body.get(name) for name in ("instructions", "input", "tools")]).decode()
        said = _MEDIA.sub("", said)
        if len(said) > self.context * 32:  # it is too much, however it is counted
            return 0
        return self.context - answer - self.count(said) - _FRAME


def excerpt_budget(budget: ContextBudget, body: Mapping[str, Any]) -> int:
    """Tokens. A history that may be cut leaves them at least half of what there is without it."""
    try:
        terms = context_options_of(RESPONSES, body)
    except InvalidRequest:
        return budget.left(body)  # it will be refused
    if terms is None or (terms.strategy is None and terms is not AUTO):
        return budget.left(body)
    prompt = budget.context - reserved(body, budget.context)
    over = max(0, prompt - terms.max_tokens) if terms.max_tokens else 0
    alone = budget.left({**body, "input": _last_turn(body.get("input"))}) - over
    return max(budget.left(body) - over, alone // 2)


def _last_turn(given: Any) -> Any:
    if not isinstance(given, list):
        return given
    users = [n for n, item in enumerate(given) if isinstance(item, dict) and item.get("role") == "user"]
    return given[users[-1] :] if users else given


def select_excerpts(found: Sequence[Found], budget: ContextBudget, tokens: int) -> list[Found]:
    """The best first, each whole; of the very best at least the beginning. Counted as they are shown."""
    selected: list[Found] = []
    for one in found:
        needed = budget.count(excerpt(len(selected) + 1, one)) + _BETWEEN
        if needed <= tokens:
            selected.append(one)
            tokens -= needed
        elif not selected:
            return [_beginning(one, budget, max(tokens - _BETWEEN, _LEAST))]
    return selected


def join_neighbours(selected: Sequence[Found]) -> list[Found]:
    """As they are shown: by rank, but for those that follow another."""
    groups: list[list[Found]] = []
    for one in selected:
        near = [group for group in groups if any(_touch(one, other) for other in group)]
        groups = [group for group in groups if not any(group is other for other in near[1:])]
        if near:
            near[0] += [one, *(other for group in near[1:] for other in group)]
        else:
            groups.append([one])
    return [part for group in groups for part in _once(sorted(group, key=_start))]


def _touch(one: Found, other: Found) -> bool:
    if one.file_id != other.file_id or "start" not in one.meta or "start" not in other.meta:
        return False
    first, second = sorted((one, other), key=_start)
    return second.n == first.n + 1 or _start(second) <= int(first.meta["end"])


def _once(group: Sequence[Found]) -> list[Found]:
    """Without what the one before has shown."""
    shown, end = [group[0]], int(group[0].meta.get("end") or 0)
    for one in group[1:]:
        again = max(0, end - _start(one))
        if again < len(one.text):
            meta = {**one.meta, "start": _start(one) + again}
            shown.append(msgspec.structs.replace(one, text=one.text[again:], meta=meta))
        end = max(end, int(one.meta["end"]))
    return shown


def _beginning(one: Found, budget: ContextBudget, tokens: int) -> Found:
    """As much of it as has so many tokens when it is shown."""

    def needed(length: int) -> int:
        return budget.count(excerpt(1, msgspec.structs.replace(one, text=one.text[:length])))

    text = one.text[: max(0, bisect_right(range(len(one.text) + 1), tokens, key=needed) - 1)]
    meta = {**one.meta, "end": _start(one) + len(text)} if "start" in one.meta else one.meta
    return msgspec.structs.replace(one, text=text, meta=meta)


def _start(one: Found) -> int:
    return int(one.meta.get("start") or 0)


# Citations.

_MARKER: Final = re.compile(r"\[(\d{1,2}(?:\s*,\s*\d{1,2})*)\]")
_STOPS: Final = "\u3002\uff01\uff1f"  # wide ones, that no space follows
_QUOTES: Final = "\"')\u2019\u201d\u300d\u300f\uff09"
_ENDS: Final = re.compile(rf"(?<=[.?!:])\s+|\n+|(?<=[{_STOPS}])|(?<=[{_STOPS}][{_QUOTES}])")
_PIECE: Final = re.compile(rf"[^\s{_STOPS}]*+[{_STOPS}]+[{_QUOTES}]*|[^\s{_STOPS}]+")
_LONG: Final = 4  # characters; of wide ones two
_SHARE: Final = 1 / 3
_ENOUGH: Final = 3  # words: of fewer none has to stand in the excerpt


class _Said:
    """A sentence so far: its words, and how many of them stand in which excerpt. Each is looked up once."""

    def __init__(self, there: Mapping[int, frozenset[str]]) -> None:
        self._there = there
        self.begin()

    def begin(self) -> None:
        self._words: set[str] = set()
        self.long = 0
        self._shared = dict.fromkeys(self._there, 0)
        self._shared_long = dict.fromkeys(self._there, 0)

    def add(self, text: str) -> None:
        for word in _words_said(text) - self._words:
            self._words.add(word)
            is_long = _is_long(word)
            self.long += is_long
            for number, there in self._there.items():
                stands = _stands(word, there)
                self._shared[number] += stands
                self._shared_long[number] += is_long and stands

    def share(self, number: int) -> float:
        """Of short words only where there are no others: they stand everywhere."""
        if self.long:
            return self._shared_long[number] / self.long
        return self._shared[number] / len(self._words) if self._words else 0.0


def citations(text: str, found: Sequence[Found]) -> list[dict[str, Any]]:
    """OpenAI's annotations; `index` is where in the text the citation stands, in characters.

    None stands where the excerpt has nothing of what it is named for.
    """
    named = {marker.start(): _numbers(marker, len(found)) for marker in _MARKER.finditer(text)}
    there = {number: _words(found[number].text) for number in set().union(*named.values())}
    if not there:
        return _by_words(text, found)
    return [
        _citation(found[number], at, share)
        for at, said in _said_before(text, named, _Said(there))
        for number in named[at]
        if (share := said.share(number)) or said.long < _ENOUGH
    ]


def _numbers(marker: re.Match[str], most: int) -> list[int]:
    return [int(number) - 1 for number in marker.group(1).split(",") if 1 <= int(number) <= most]


def _said_before(text: str, positions: Iterable[int], said: _Said) -> Iterator[tuple[int, _Said]]:
    """Each marker's place with the sentence that it stands in, or after: what ends one shows at the next word.

    In one walk: an answer may have a marker behind every word.
    """
    plain = _MARKER.sub(lambda marker: " " * len(marker[0]), text)
    left, end = deque(positions), 0
    for piece in _PIECE.finditer(plain):
        while left and left[0] < piece.start():
            yield left.popleft(), said
        if _ENDS.search(plain, max(end - 1, 0), piece.start()):
            said.begin()
        said.add(piece[0])
        end = piece.end()
    yield from ((position, said) for position in left)


def support(text: str, found: Sequence[Found]) -> float:
    """The share of a text's words that stand in the excerpts, 0 of one without words.

    Of short words only where there are no others: they stand everywhere.
    """
    said = _words_said(_MARKER.sub(" ", text))
    there: frozenset[str] = frozenset().union(*(_words(one.text) for one in found))
    return _share({word for word in said if _is_long(word)} or said, there)


def _by_words(text: str, found: Sequence[Found]) -> list[dict[str, Any]]:
    said = {word for word in _words_said(text) if _is_long(word)}
    shares = [_share(said, _words(one.text)) for one in found] if said else []
    best = max(shares, default=0.0)
    return [_citation(found[shares.index(best)], len(text), best)] if best >= _SHARE else []


def _share(said: Collection[str], there: frozenset[str]) -> float:
    return sum(_stands(word, there) for word in said) / len(said) if said else 0.0


def _stands(word: str, there: frozenset[str]) -> bool:
    return word in there or (lexical.is_wide(word) and (word[:2] in there or word[-2:] in there))


def _is_long(word: str) -> bool:
    return len(word) >= _LONG or (len(word) > 1 and lexical.is_wide(word))


def _words_said(text: str) -> set[str]:
    """Each wide character with those beside it."""
    said: set[str] = set()
    for run in lexical.runs(text.casefold()):
        said.update((run[max(0, at - 1) : at + 2] for at in range(len(run))) if lexical.is_wide(run) else (run,))
    return said


def _words(text: str) -> frozenset[str]:
    """Of an excerpt: wide characters in pairs, and each alone for one that is said alone."""
    words: set[str] = set()
    for run in lexical.runs(text.casefold()):
        words.update((*run, *lexical.pairs(run)) if lexical.is_wide(run) else (run,))
    return frozenset(words)


def _citation(found: Found, index: int, share: float) -> dict[str, Any]:
    theirs = {"type": "file_citation", "index": index, "file_id": found.file_id, "filename": found.filename}
    position = {"chunk": found.n, "start": found.meta.get("start"), "end": found.meta.get("end")}
    return {**theirs, **position, "support": round(share, 3)}
