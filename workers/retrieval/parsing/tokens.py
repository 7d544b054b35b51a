"""A tokenizer as chunking sees it: where each token of a text begins and ends.

Two things that tokenizers do are evened out. A token may stand for a million characters (WordPiece's [UNK]), and a
million spaces for no token: both count as several tokens, one for every WIDE characters, so that a limit on tokens is a
limit on characters too. And a long text is given to the tokenizer in pieces, which bounds memory, and is faster.
"""

import json
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import sub
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from workers.retrieval.parsing.borders import is_word_start
from workers.retrieval.parsing.contract import Limits, invalid

WIDE: Final = 32  # characters
PIECE: Final = 1 << 14  # characters; measured: twice as fast as a megabyte at once
#: These cut at white space before anything else, so a text's tokens are those of its words.
_BY_WORD: Final = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
_LOCAL: Final = frozenset({None, "BertNormalizer", "Lowercase", "NFC", "NFD", "StripAccents"})


class Spans:
    """The tokens of a whole text. `_uneven` are the places where a count of them would not be the tokenizer's own."""

    def __init__(self) -> None:
        self.starts = array("I")
        self.ends = array("I")
        self._uneven: list[int] = []

    def add(self, base: int, offsets: list[tuple[int, int]]) -> None:
        """The tokens of the next piece, which begins at `base`."""
        starts = [base + start for start, _ in offsets]
        ends = [base + end for _, end in offsets]
        before = self.ends[-1] if self.ends else 0
        if _is_even(before, starts, ends):  # nearly always; a step in Python for each token costs half the speed
            self.starts.extend(starts)
            self.ends.extend(ends)
            return
        for start, end in zip(starts, ends, strict=True):
            self._add(start, end)

    def mark(self, at: int) -> None:
        insort(self._uneven, at)

    def is_even(self, start: int, end: int) -> bool:
        at = bisect_left(self._uneven, start)
        return at == len(self._uneven) or self._uneven[at] >= end

    def close(self, length: int) -> None:
        self._fill(length)

    def _add(self, start: int, end: int) -> None:
        self._fill(start)
        start = max(start, self.starts[-1] if self.starts else 0)
        end = max(end, self.ends[-1] if self.ends else 0)
        if end - start > WIDE:
            self._split(start, end)
        else:
            self.starts.append(start)
            self.ends.append(end)

    def _fill(self, start: int) -> None:
        """A gap that no token stands for."""
        before = self.ends[-1] if self.ends else 0
        if start - before > WIDE:
            self._split(before, start)

    def _split(self, start: int, end: int) -> None:
        for at in range(start, end, WIDE):
            self.mark(at)
            self.starts.append(at)
            self.ends.append(min(at + WIDE, end))


def _is_even(before: int, starts: list[int], ends: list[int]) -> bool:
    """In order, and no wide token or gap. (Bytes of one character share it: their gap is less than none.)"""
    if not starts:
        return True
    gaps = map(sub, starts, [before, *ends[:-1]])
    in_order = starts[0] >= before and starts == sorted(starts) and ends == sorted(ends)
    return in_order and max(gaps) <= WIDE and max(map(sub, ends, starts)) <= WIDE


class Tokens:
    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.by_word = _is_by_word(json.loads(tokenizer.to_str()))

    @classmethod
    def load(cls, path: Path) -> "Tokens":
        return cls(Tokenizer.from_file(str(path)))

    @classmethod
    def read(cls, data: bytes) -> "Tokens":
        """Return the tokenizer that `data`, the content of a tokenizer.json, describes."""
        return cls(Tokenizer.from_buffer(data))

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])

    def spans(self, text: str, limits: Limits) -> Spans:
        """Raises Refused when there are too many, or none."""
        spans = Spans()
        for start, end in pieces(text):
            if not is_word_start(text, start):
                spans.mark(start)
            spans.add(start, self._offsets(text[start:end]))
            if len(spans.starts) > limits.tokens:
                raise invalid(f"The file has more than {limits.tokens} tokens.")
        spans.close(len(text))
        return spans

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        offsets: list[tuple[int, int]] = encoding.offsets
        return offsets


def pieces(text: str, size: int = PIECE) -> Iterator[tuple[int, int]]:
    """Of at most `size` characters, cut between blocks, else lines, else words, else anywhere."""
    start = 0
    while len(text) - start > size:
        end = _cut(text, start + size // 2, start + size)
        yield start, end
        start = end
    if start < len(text):
        yield start, len(text)


def _cut(text: str, low: int, high: int) -> int:
    """Before white space: a token may begin with it, none ends with it."""
    for mark in ("\n\n", "\n", " "):
        found = text.rfind(mark, low, high)
        if found > 0:
            return found
    return high


def _is_by_word(config: dict[str, dict[str, object] | None]) -> bool:
    normalizer, cutter = config["normalizer"], config["pre_tokenizer"]
    return (normalizer or {}).get("type") in _LOCAL and (cutter or {}).get("type") in _BY_WORD
