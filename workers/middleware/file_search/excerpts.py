"""Select the excerpts that a model is shown, and cite those that its answer is based on.

    context less question and answer ─▶ budget ─▶ by rank, each that still fits ─▶ neighbours of one file joined

Consecutive chunks of a file are shown in order, and their common text is shown once.

An answer's text gets `file_citation` annotations:

    "It purrs [1]."      with markers: a citation at each marker, unless the excerpt shares no word with the sentence
    "It purrs."          without markers: the excerpt with most words of the answer, if it has at least a third

Besides OpenAI's fields a citation has `chunk`, `start` and `end` (the number of the chunk, and the range of characters
in the file's content), and `support`, the share of the sentence's words that the excerpt contains (see
`jobs.retrieval.words`).
"""

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from tokenizers import Tokenizer

from jobs.errors import InvalidRequest
from jobs.inference.context_options import AUTO, answer_reserve, context_options_of
from jobs.requests.endpoints import RESPONSES
from jobs.retrieval import words
from jobs.retrieval.searches import FoundChunk
from workers.middleware.quoting import excerpt

_ANSWER: Final = 1024  # tokens of an answer without a limit; at most a quarter of the context
_FRAME: Final = 160  # tokens of the chat template and of the instructions about excerpts
_BETWEEN: Final = 2  # tokens between two excerpts
_MIN_TOKENS: Final = 88  # tokens of the best excerpt at least
_BYTES: Final = 4  # per token, without a tokenizer
_MEDIA: Final = re.compile(r"data:[\w.+/-]+;base64,[\w+/=-]+")  # only the model knows how many tokens a picture has


@dataclass(frozen=True, slots=True)
class ContextBudget:
    """A model's context length in tokens, and its tokenizer; without one, four bytes count as a token."""

    context: int
    tokenizer: Tokenizer | None = None

    def count(self, text: str) -> int:
        if self.tokenizer is None:
            return -(-len(text.encode()) // _BYTES)
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def remaining_tokens(self, body: Mapping[str, Any]) -> int:
        """Return the tokens that the question and its answer leave."""
        max_output = body.get("max_output_tokens")
        answer = max_output if isinstance(max_output, int) else min(_ANSWER, self.context // 4)
        prompt = msgspec.json.encode([body.get(name) for name in ("instructions", "input", "tools")]).decode()
        prompt = _MEDIA.sub("", prompt)
        if len(prompt) > self.context * 32:  # too long by any count
            return 0
        return self.context - answer - self.count(prompt) - _FRAME


def excerpt_budget(budget: ContextBudget, body: Mapping[str, Any]) -> int:
    """Return how many tokens excerpts may have.

    If the history may be cut, at least half of the tokens that an empty history would leave.
    """
    try:
        options = context_options_of(RESPONSES, body)
    except InvalidRequest:
        return budget.remaining_tokens(body)  # the context window will refuse it
    if options is None or (options.strategy is None and options is not AUTO):
        return budget.remaining_tokens(body)
    prompt = budget.context - answer_reserve(body, budget.context)
    over = max(0, prompt - options.max_tokens) if options.max_tokens else 0
    alone = budget.remaining_tokens({**body, "input": _last_turn(body.get("input"))}) - over
    return max(budget.remaining_tokens(body) - over, alone // 2)


def _last_turn(given: Any) -> Any:
    if not isinstance(given, list):
        return given
    users = [n for n, item in enumerate(given) if isinstance(item, dict) and item.get("role") == "user"]
    return given[users[-1] :] if users else given


def select_excerpts(chunks: Sequence[FoundChunk], budget: ContextBudget, tokens: int) -> list[FoundChunk]:
    """Return the best excerpts that fit, each whole; of the very best one at least the beginning."""
    selected: list[FoundChunk] = []
    for chunk in chunks:
        needed = budget.count(excerpt(len(selected) + 1, chunk)) + _BETWEEN
        if needed <= tokens:
            selected.append(chunk)
            tokens -= needed
        elif not selected:
            return [_beginning(chunk, budget, max(tokens - _BETWEEN, _MIN_TOKENS))]
    return selected


def join_neighbours(selected: Sequence[FoundChunk]) -> list[FoundChunk]:
    """Return the excerpts by rank, with consecutive chunks of a file next to each other and without repeated text."""
    groups: list[list[FoundChunk]] = []
    for chunk in selected:
        near = [group for group in groups if any(_touch(chunk, other) for other in group)]
        groups = [group for group in groups if not any(group is other for other in near[1:])]
        if near:
            near[0] += [chunk, *(other for group in near[1:] for other in group)]
        else:
            groups.append([chunk])
    return [part for group in groups for part in _drop_overlaps(sorted(group, key=_start))]


def _touch(left: FoundChunk, right: FoundChunk) -> bool:
    if left.file_id != right.file_id or "start" not in left.meta or "start" not in right.meta:
        return False
    first, second = sorted((left, right), key=_start)
    return second.n == first.n + 1 or _start(second) <= int(first.meta["end"])


def _drop_overlaps(group: Sequence[FoundChunk]) -> list[FoundChunk]:
    """Return consecutive chunks without the text that the chunk before has shown."""
    shown, end = [group[0]], int(group[0].meta.get("end") or 0)
    for chunk in group[1:]:
        again = max(0, end - _start(chunk))
        if again < len(chunk.text):
            meta = {**chunk.meta, "start": _start(chunk) + again}
            shown.append(msgspec.structs.replace(chunk, text=chunk.text[again:], meta=meta))
        end = max(end, int(chunk.meta["end"]))
    return shown


def _beginning(chunk: FoundChunk, budget: ContextBudget, tokens: int) -> FoundChunk:
    """Return as much of the beginning as fits into `tokens`."""

    def needed(length: int) -> int:
        return budget.count(excerpt(1, msgspec.structs.replace(chunk, text=chunk.text[:length])))

    text = chunk.text[: max(0, bisect_right(range(len(chunk.text) + 1), tokens, key=needed) - 1)]
    meta = {**chunk.meta, "end": _start(chunk) + len(text)} if "start" in chunk.meta else chunk.meta
    return msgspec.structs.replace(chunk, text=text, meta=meta)


def _start(chunk: FoundChunk) -> int:
    return int(chunk.meta.get("start") or 0)


# Citations.

_STOPS: Final = "\u3002\uff01\uff1f"  # wide ones, without a space behind
_QUOTES: Final = "\"')\u2019\u201d\u300d\u300f\uff09"
_ENDS: Final = re.compile(rf"(?<=[.?!:])\s+|\n+|(?<=[{_STOPS}])|(?<=[{_STOPS}][{_QUOTES}])")
_PIECE: Final = re.compile(rf"[^\s{_STOPS}]*+[{_STOPS}]+[{_QUOTES}]*|[^\s{_STOPS}]+")
_SHARE: Final = 1 / 3
_ENOUGH: Final = 3  # words: a shorter sentence is cited without a common word


class _SentenceWords:
    """The words of a sentence so far, and how many of them each excerpt contains."""

    def __init__(self, there: Mapping[int, frozenset[str]]) -> None:
        self._there = there
        self.begin()

    def begin(self) -> None:
        self._words: set[str] = set()
        self.long = 0
        self._shared = dict.fromkeys(self._there, 0)
        self._shared_long = dict.fromkeys(self._there, 0)

    def add(self, text: str) -> None:
        for word in words.stated_words(text) - self._words:
            self._words.add(word)
            is_long = words.is_long(word)
            self.long += is_long
            for number, there in self._there.items():
                stands = words.is_contained(word, there)
                self._shared[number] += stands
                self._shared_long[number] += is_long and stands

    def share(self, number: int) -> float:
        """Return the share of the words that the excerpt contains; short words count only if there are no others."""
        if self.long:
            return self._shared_long[number] / self.long
        return self._shared[number] / len(self._words) if self._words else 0.0


def citations(text: str, excerpts: Sequence[FoundChunk]) -> list[dict[str, Any]]:
    """Return OpenAI's annotations; `index` is the position in `text`, in characters.

    A marker gives no citation if its excerpt shares nothing with the sentence.
    """
    named = {marker.start(): _numbers(marker, len(excerpts)) for marker in words.MARKER.finditer(text)}
    there = {number: words.contained_words(excerpts[number].text) for number in set().union(*named.values())}
    if not there:
        return _cite_by_words(text, excerpts)
    return [
        _citation(excerpts[number], at, share)
        for at, sentence in _sentences_of_markers(text, named, _SentenceWords(there))
        for number in named[at]
        if (share := sentence.share(number)) or sentence.long < _ENOUGH
    ]


def _numbers(marker: re.Match[str], count: int) -> list[int]:
    return [int(number) - 1 for number in marker.group(1).split(",") if 1 <= int(number) <= count]


def _sentences_of_markers(
    text: str, positions: Iterable[int], sentence: _SentenceWords
) -> Iterator[tuple[int, _SentenceWords]]:
    """Yield each marker's position with the words of its sentence, or of the sentence before it.

    One pass over the text: an answer may have a marker behind every word.
    """
    plain = words.MARKER.sub(lambda marker: " " * len(marker[0]), text)
    left, end = deque(positions), 0
    for piece in _PIECE.finditer(plain):
        while left and left[0] < piece.start():
            yield left.popleft(), sentence
        if _ENDS.search(plain, max(end - 1, 0), piece.start()):
            sentence.begin()
        sentence.add(piece[0])
        end = piece.end()
    yield from ((position, sentence) for position in left)


def _cite_by_words(text: str, excerpts: Sequence[FoundChunk]) -> list[dict[str, Any]]:
    stated = set(filter(words.is_long, words.stated_words(text)))
    shares = [words.share(stated, words.contained_words(chunk.text)) for chunk in excerpts] if stated else []
    best = max(shares, default=0.0)
    return [_citation(excerpts[shares.index(best)], len(text), best)] if best >= _SHARE else []


def _citation(chunk: FoundChunk, index: int, share: float) -> dict[str, Any]:
    theirs = {"type": "file_citation", "index": index, "file_id": chunk.file_id, "filename": chunk.filename}
    position = {"chunk": chunk.n, "start": chunk.meta.get("start"), "end": chunk.meta.get("end")}
    return {**theirs, **position, "support": round(share, 3)}
