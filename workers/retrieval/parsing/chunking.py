"""Cut a text into chunks of limited length in tokens.

    tokens      |--------------- max_tokens ----------------|
    text        ...............................¶......s..w..|       the last third is searched for the best border:
                                               ^                    paragraph, line, sentence, word, token
    next chunk                            |overlap|------...

The text is tokenized once, and cut at the tokens' offsets. A part of a text may have other tokens than in the whole
(its first word has no space before it any more), so a chunk is counted again where that is possible, and shortened
until it fits. Only a single character may exceed the limit.

    static      as above
    sentence    the last end of a sentence anywhere in the window is preferred
    structure   a chunk has text of one section; code and tables are separate, whole where they fit
    semantic    not here: the text is cut into sentences, and indexing joins them to chunks

`Tokens` evens out two habits of tokenizers. A token may stand for a million characters (WordPiece's [UNK]), and a
million spaces for no token: both count as several tokens, one for every WIDE characters, so that a limit on tokens is a
limit on characters too. A long text is given to the tokenizer in pieces, which bounds memory, and is faster.

A border is a position between two characters. Each search function returns the last border in text[low:high + 1], and
reads no character before `low`, so that its cost is linear in the window.
"""

import json
import re
import unicodedata
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import sub
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from jobs.retrieval.documents import Chunk
from workers.retrieval.parsing.blocks import Laid, PlacedBlock
from workers.retrieval.parsing.contract import Cutting, ParserLimits, invalid_file, no_text

# ── borders ──

#: A full stop (also in Arabic, Urdu and Hindi) and what closes after it, before white space and no small letter
#: (`e.g. this`). Those of Chinese and Japanese need no space.
_SENTENCE: Final = re.compile(
    r"[.!?…؟\u06d4\u0964][\"'”\u2019)\]»]*(?=\s+(?:[^\sa-z]|\Z))|[。\uff01\uff1f\uff61][\"'”\u2019」』\uff09]*"
)
_AFTER: Final = 16  # characters behind the window that tell whether a sentence ends
_SPACE: Final = re.compile(r"\s")
_LINE: Final = re.compile(r"\n")
_WORD: Final = re.compile(r"\S")
_JOINER: Final = "\u200d"
_CLUSTER: Final = 16  # characters: longer heaps of marks may be cut

Border = Callable[[str, int, int], int | None]


def paragraph_border(text: str, low: int, high: int) -> int | None:
    return _last("\n\n", text, low, high)


def line_border(text: str, low: int, high: int) -> int | None:
    return _last("\n", text, low, high)


def sentence_border(text: str, low: int, high: int) -> int | None:
    sentence_ends = (match.end() for match in _SENTENCE.finditer(text, low, high + _AFTER))
    return max((end for end in sentence_ends if end <= high), default=None)


def sentence_ends(text: str, start: int, end: int, *, of_lines: bool) -> Iterator[int]:
    """Yield the end of each sentence of text[start:end], or of each line, and `end`."""
    marks = _LINE if of_lines else _SENTENCE
    for match in marks.finditer(text, start, min(end + _AFTER, len(text))):
        if match.end() >= end:
            break
        yield match.end()
    yield end


def word_border(text: str, low: int, high: int) -> int | None:
    """Return the border before the last white space."""
    parts = text[low : high + 1].rsplit(None, 1)
    if not parts or text[high : high + 1].isspace():
        return high
    at = high + 1 - len(parts[-1]) - 1
    return at if at >= low else None


def character_border(text: str, low: int, high: int) -> int:
    """Return a border outside of what is seen as one character, as far as marks and joiners tell."""
    for at in range(high, max(low, high - _CLUSTER), -1):
        if not _joins(text, at):
            return at
    return high


def is_word_start(text: str, at: int) -> bool:
    return at in (0, len(text)) or text[at - 1].isspace() or text[at].isspace()


def next_word(text: str, low: int, high: int) -> int | None:
    """Return the border after the first white space."""
    match = _SPACE.search(text, low, high)
    return match.end() if match else None


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the range without white space around; an empty one (start == end) when there is nothing else."""
    match = _WORD.search(text, start, end)
    if match is None:
        return end, end
    while text[end - 1].isspace():
        end -= 1
    return match.start(), end


def _last(mark: str, text: str, low: int, high: int) -> int | None:
    at = text.rfind(mark, low, high + len(mark))
    return at if at >= 0 else None


def _joins(text: str, at: int) -> bool:
    """Tell whether the characters on both sides belong together."""
    if not 0 < at < len(text):
        return False
    following = text[at]
    return (
        _JOINER in (text[at - 1], following)
        or unicodedata.category(following) in ("Mn", "Me", "Mc")
        or "\U0001f3fb" <= following <= "\U0001f3ff"  # skin tones
    )


# ── tokens ──

WIDE: Final = 32  # characters
PIECE: Final = 1 << 14  # characters; measured: twice as fast as a megabyte at once
#: These cut at white space before anything else, so a text's tokens are those of its words.
_BY_WORD: Final = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
_LOCAL: Final = frozenset({None, "BertNormalizer", "Lowercase", "NFC", "NFD", "StripAccents"})


class Spans:
    """The tokens of a whole text. `_uneven` are positions where their count is not the tokenizer's own."""

    def __init__(self) -> None:
        self.starts = array("I")
        self.ends = array("I")
        self._uneven: list[int] = []

    def add(self, base: int, offsets: list[tuple[int, int]]) -> None:
        """Add the tokens of the next piece, which begins at `base`."""
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
        """Fill a gap that no token stands for."""
        before = self.ends[-1] if self.ends else 0
        if start - before > WIDE:
            self._split(before, start)

    def _split(self, start: int, end: int) -> None:
        for at in range(start, end, WIDE):
            self.mark(at)
            self.starts.append(at)
            self.ends.append(min(at + WIDE, end))


def _is_even(before: int, starts: list[int], ends: list[int]) -> bool:
    """Tell whether tokens are in order, without a wide token or gap. (Bytes of one character share it.)"""
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

    def spans(self, text: str, limits: ParserLimits) -> Spans:
        """Return the tokens of a whole text. Raises Refused when there are too many."""
        spans = Spans()
        for start, end in pieces(text):
            if not is_word_start(text, start):
                spans.mark(start)
            spans.add(start, self._offsets(text[start:end]))
            if len(spans.starts) > limits.tokens:
                raise invalid_file(f"The file has more than {limits.tokens} tokens.")
        spans.close(len(text))
        return spans

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        offsets: list[tuple[int, int]] = encoding.offsets
        return offsets


def pieces(text: str, size: int = PIECE) -> Iterator[tuple[int, int]]:
    """Yield ranges of at most `size` characters, cut between blocks, else lines, else words, else anywhere."""
    start = 0
    while len(text) - start > size:
        end = _cut(text, start + size // 2, start + size)
        yield start, end
        start = end
    if start < len(text):
        yield start, len(text)


def _cut(text: str, low: int, high: int) -> int:
    """Return a cut before white space: a token may begin with it, none ends with it."""
    for mark in ("\n\n", "\n", " "):
        position = text.rfind(mark, low, high)
        if position > 0:
            return position
    return high


def _is_by_word(config: dict[str, dict[str, object] | None]) -> bool:
    normalizer, cutter = config["normalizer"], config["pre_tokenizer"]
    return (normalizer or {}).get("type") in _LOCAL and (cutter or {}).get("type") in _BY_WORD


# ── chunks ──

_PREFERRED: Final[tuple[Border, ...]] = (paragraph_border, line_border, sentence_border, word_border)
_ALONE: Final = frozenset({"code", "table"})
_OF_LINES: Final = frozenset({"code", "table", "list"})
#: Tokens: a sentence that is shorter goes with the next. It says little by itself, and each costs an embedding.
MIN_SENTENCE: Final = 12


@dataclass(frozen=True, slots=True)
class Piece:
    start: int
    end: int
    tokens: int


def chunks(laid: Laid, tokens: Tokens, cutting: Cutting, limits: ParserLimits) -> tuple[Chunk, ...]:
    """Cut a document into chunks. Raises Refused when there are too many tokens, or none."""
    spans = tokens.spans(laid.text, limits)
    if not spans.starts:
        raise no_text()
    cutter = Cutter(laid.text, tokens, spans, cutting)
    whole = [(0, len(laid.text))]
    segments = _segments(laid, cutter) if cutting.strategy == "structure" else whole
    return tuple(_chunk_of(laid, piece) for start, end in segments for piece in cutter.cut(start, end))


def sentences(laid: Laid, tokens: Tokens, cutting: Cutting, limits: ParserLimits) -> tuple[Chunk, ...]:
    """Cut a document into sentences and lines that fit; a heading goes with what follows. Raises as `chunks` does."""
    spans = tokens.spans(laid.text, limits)
    if not spans.starts:
        raise no_text()
    cutter = Cutter(laid.text, tokens, spans, cutting)
    chunks = [_chunk_of(laid, piece) for start, end in _sentences(laid, cutter) for piece in cutter.cut(start, end)]
    return tuple(chunks)


class Cutter:
    def __init__(self, text: str, tokens: Tokens, spans: Spans, cutting: Cutting) -> None:
        self._text = text
        self._tokens = tokens
        self._spans = spans
        self._cutting = cutting
        self._most = cutting.max_tokens

    def fits(self, start: int, end: int) -> bool:
        return self._index(end) - self._index(start) <= self._most

    def is_short(self, start: int, end: int) -> bool:
        return self._index(end) - self._index(start) < MIN_SENTENCE

    def cut(self, start: int, end: int) -> Iterator[Piece]:
        """Yield the chunks of text[start:end]. Every chunk goes beyond `floor`, where the chunk before ended."""
        start, end = trim(self._text, start, end)
        floor = start
        while floor < end:
            piece, cut = self._next(start, floor, end)
            if piece is not None:
                yield piece
            floor = trim(self._text, cut, end)[0]
            start = floor if piece is None else self._overlapping(piece, cut, floor)

    def _next(self, start: int, floor: int, end: int) -> tuple[Piece | None, int]:
        """Return the chunk from `start`, without an overlap that would take all of it, and where the text was cut."""
        limit, step = min(self._most, max(1, self._index(end) - self._index(start))), 1
        while True:
            if start < floor and (limit == 1 or self._at(self._index(start) + limit, end) <= floor):
                start = floor
            cut = self._cut(start, floor, end, limit)
            piece = self._piece(start, cut)
            if piece is None or piece.tokens <= self._most:
                return piece, cut
            if limit == 1:
                return self._by_characters(piece)
            limit = max(1, limit - max(piece.tokens - self._most, step))
            step *= 2

    def _piece(self, start: int, end: int) -> Piece | None:
        first, last = trim(self._text, start, end)
        return Piece(first, last, self._count(first, last)) if first < last else None

    def _by_characters(self, piece: Piece) -> tuple[Piece, int]:
        """Shorten a piece whose one token becomes several when it stands alone."""
        while piece.tokens > self._most and piece.end - piece.start > 1:
            shorter = self._piece(piece.start, (piece.start + piece.end) // 2)
            assert shorter is not None  # it begins with no white space
            piece = shorter
        return piece, piece.end

    def _cut(self, start: int, floor: int, end: int, limit: int) -> int:
        first, least = self._index(start), max(start, floor) + 1
        high = max(self._at(first + limit, end), least)
        if high >= end:
            return end
        low = max(self._at(first + limit * 2 // 3, high), least)
        cut = self._sentence(least, low, high) if self._cutting.strategy == "sentence" else None
        for border in _PREFERRED:
            cut = border(self._text, low, high) if cut is None else cut
        return character_border(self._text, low, high) if cut is None else cut

    def _sentence(self, least: int, low: int, high: int) -> int | None:
        paragraph = paragraph_border(self._text, low, high)
        return sentence_border(self._text, least, high) if paragraph is None else paragraph

    def _overlapping(self, piece: Piece, cut: int, floor: int) -> int:
        """Return where the chunk after `piece` begins: at a word if there is one, never with more than half of it."""
        last = self._index(cut)
        count = min(self._cutting.overlap, (last - self._index(piece.start)) // 2)
        if count == 0:
            return floor
        at = self._at(last - count, cut)
        if not is_word_start(self._text, at):
            at = next_word(self._text, at, cut) or character_border(self._text, piece.start + 1, at)
        return at if piece.start < at < cut else floor

    def _count(self, start: int, end: int) -> int:
        if self._tokens.by_word and self._is_whole(start, end):
            return self._index(end) - self._index(start)
        return self._tokens.count(self._text[start:end])

    def _is_whole(self, start: int, end: int) -> bool:
        """Tell whether a range is of whole words, without tokens that are none."""
        at_words = is_word_start(self._text, start) and is_word_start(self._text, end)
        return at_words and self._spans.is_even(start, end)

    def _index(self, at: int) -> int:
        """Return the index of the first token that begins at `at` or later."""
        return bisect_left(self._spans.starts, at)

    def _at(self, index: int, end: int) -> int:
        """Return where a token begins; a token that shares a character with the one before gives way to that."""
        starts, ends = self._spans.starts, self._spans.ends
        while index < len(starts) and index and ends[index - 1] > starts[index]:
            index -= 1
        return min(starts[index], end) if index < len(starts) else end


def _segments(laid: Laid, cutter: Cutter) -> Iterator[tuple[int, int]]:
    """Yield the ranges that belong together; headings go with what follows them."""
    start: int | None = None
    for at, block in enumerate(laid.blocks):
        start = block.start if start is None else start
        following = laid.blocks[at + 1] if at + 1 < len(laid.blocks) else None
        if following is None or not _belong_together(block, following, cutter.fits(start, following.end)):
            yield start, block.end
            start = None


def _sentences(laid: Laid, cutter: Cutter) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges of the whole text. A short one joins the next, unless that is of another section."""
    start: int | None = None
    before: PlacedBlock | None = None
    for block in laid.blocks:
        if start is not None and before is not None and block.section != before.section and before.kind != "heading":
            yield start, before.end
            start = None
        start = block.start if start is None else start
        if block.kind != "heading":
            for end in sentence_ends(laid.text, block.start, block.end, of_lines=block.kind in _OF_LINES):
                if not cutter.is_short(start, end):
                    yield start, end
                    start = end
            start = None if start == block.end else start
        before = block
    if start is not None and before is not None:
        yield start, before.end


def _belong_together(block: PlacedBlock, following: PlacedBlock, fits: bool) -> bool:
    if block.kind == "heading":
        below = following.section[: len(block.section)] == block.section
        return below and (fits or following.kind not in _ALONE)
    if following.kind == "heading" or block.section != following.section:
        return False
    return block.kind not in _ALONE and following.kind not in _ALONE


def _chunk_of(laid: Laid, piece: Piece) -> Chunk:
    block = laid.blocks[bisect_right(laid.blocks, piece.start, key=lambda block: block.start) - 1]
    return Chunk(piece.start, piece.end, piece.tokens, block.page, block.section)
