"""A text is cut into pieces of at most so many tokens.

    tokens      |--------------- max_tokens ----------------|
    text        ...............................¶......s..w..|       the last third is searched for the best border:
                                               ^                    paragraph, line, sentence, word, token
    next chunk                            |overlap|------...

It is tokenised once, and cut on the tokens' offsets. A part of a text may have other tokens than it had in the whole
(its first word has no space before it any more), so a chunk is counted again wherever that can be, and cut shorter
until it fits. Only one single character may be more than the limit.

    static      as above
    sentence    the last end of a sentence anywhere in the window goes before the rest
    structure   a chunk is of one section; code and tables stand alone, whole where they fit
    semantic    not here: it is cut into sentences, of which indexing makes chunks
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from jobs.retrieval.documents import Chunk
from workers.retrieval.parsing import borders
from workers.retrieval.parsing.blocks import Laid, Placed
from workers.retrieval.parsing.contract import Cutting, Limits, no_text
from workers.retrieval.parsing.tokens import Spans, Tokens

_PREFERRED: Final[tuple[borders.Border, ...]] = (borders.paragraph, borders.line, borders.sentence, borders.word)
_ALONE: Final = frozenset({"code", "table"})
_OF_LINES: Final = frozenset({"code", "table", "list"})
#: Tokens: a sentence that is shorter goes with the next. It says little by itself, and each costs an embedding.
SHORTEST: Final = 12


@dataclass(frozen=True, slots=True)
class Piece:
    start: int
    end: int
    tokens: int


def chunks(laid: Laid, tokens: Tokens, cutting: Cutting, limits: Limits) -> tuple[Chunk, ...]:
    """Raises Refused when there are too many tokens, or none."""
    spans = tokens.spans(laid.text, limits)
    if not spans.starts:
        raise no_text()
    cutter = Cutter(laid.text, tokens, spans, cutting)
    whole = [(0, len(laid.text))]
    segments = _segments(laid, cutter) if cutting.strategy == "structure" else whole
    return tuple(_placed(laid, piece) for start, end in segments for piece in cutter.cut(start, end))


def sentences(laid: Laid, tokens: Tokens, cutting: Cutting, limits: Limits) -> tuple[Chunk, ...]:
    """Sentences and lines, each of which fits. A heading goes with what follows it. Raises as `chunks` does."""
    spans = tokens.spans(laid.text, limits)
    if not spans.starts:
        raise no_text()
    cutter = Cutter(laid.text, tokens, spans, cutting)
    found = [_placed(laid, piece) for start, end in _sentences(laid, cutter) for piece in cutter.cut(start, end)]
    return tuple(found)


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
        return self._index(end) - self._index(start) < SHORTEST

    def cut(self, start: int, end: int) -> Iterator[Piece]:
        """`floor` is where the chunk before ended: every chunk goes beyond it."""
        start, end = borders.trimmed(self._text, start, end)
        floor = start
        while floor < end:
            piece, cut = self._next(start, floor, end)
            if piece is not None:
                yield piece
            floor = borders.trimmed(self._text, cut, end)[0]
            start = floor if piece is None else self._overlapping(piece, cut, floor)

    def _next(self, start: int, floor: int, end: int) -> tuple[Piece | None, int]:
        """The chunk from `start`, and where it was cut (before white space). Without its overlap if that takes all."""
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
        first, last = borders.trimmed(self._text, start, end)
        return Piece(first, last, self._count(first, last)) if first < last else None

    def _by_characters(self, piece: Piece) -> tuple[Piece, int]:
        """Where what was one token is several when it stands alone."""
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
        found = self._sentence(least, low, high) if self._cutting.strategy == "sentence" else None
        for border in _PREFERRED:
            found = border(self._text, low, high) if found is None else found
        return borders.character(self._text, low, high) if found is None else found

    def _sentence(self, least: int, low: int, high: int) -> int | None:
        paragraph = borders.paragraph(self._text, low, high)
        return borders.sentence(self._text, least, high) if paragraph is None else paragraph

    def _overlapping(self, piece: Piece, cut: int, floor: int) -> int:
        """Where the chunk after `piece` begins: at a word if there is one, and never with more than half of it."""
        last = self._index(cut)
        count = min(self._cutting.overlap, (last - self._index(piece.start)) // 2)
        if count == 0:
            return floor
        at = self._at(last - count, cut)
        if not borders.is_word_start(self._text, at):
            at = borders.next_word(self._text, at, cut) or borders.character(self._text, piece.start + 1, at)
        return at if piece.start < at < cut else floor

    def _count(self, start: int, end: int) -> int:
        if self._tokens.by_word and self._is_whole(start, end):
            return self._index(end) - self._index(start)
        return self._tokens.count(self._text[start:end])

    def _is_whole(self, start: int, end: int) -> bool:
        """Of whole words, and without tokens that are none."""
        at_words = borders.is_word_start(self._text, start) and borders.is_word_start(self._text, end)
        return at_words and self._spans.is_even(start, end)

    def _index(self, at: int) -> int:
        """Of the first token that begins there or later."""
        return bisect_left(self._spans.starts, at)

    def _at(self, index: int, end: int) -> int:
        """Where that token begins; if the one before shares a character with it, where the next good one does."""
        starts, ends = self._spans.starts, self._spans.ends
        while index < len(starts) and index and ends[index - 1] > starts[index]:
            index -= 1
        return min(starts[index], end) if index < len(starts) else end


def _segments(laid: Laid, cutter: Cutter) -> Iterator[tuple[int, int]]:
    """What belongs together; headings go with what follows them."""
    start: int | None = None
    for at, block in enumerate(laid.blocks):
        start = block.start if start is None else start
        following = laid.blocks[at + 1] if at + 1 < len(laid.blocks) else None
        if following is None or not _together(block, following, cutter.fits(start, following.end)):
            yield start, block.end
            start = None


def _sentences(laid: Laid, cutter: Cutter) -> Iterator[tuple[int, int]]:
    """One after the other, and all of the text. What is short is kept for the next, but for none of another section."""
    start: int | None = None
    before: Placed | None = None
    for block in laid.blocks:
        if start is not None and before is not None and block.section != before.section and before.kind != "heading":
            yield start, before.end
            start = None
        start = block.start if start is None else start
        if block.kind != "heading":
            for end in borders.ends(laid.text, block.start, block.end, of_lines=block.kind in _OF_LINES):
                if not cutter.is_short(start, end):
                    yield start, end
                    start = end
            start = None if start == block.end else start
        before = block
    if start is not None and before is not None:
        yield start, before.end


def _together(block: Placed, following: Placed, fits: bool) -> bool:
    if block.kind == "heading":
        below = following.section[: len(block.section)] == block.section
        return below and (fits or following.kind not in _ALONE)
    if following.kind == "heading" or block.section != following.section:
        return False
    return block.kind not in _ALONE and following.kind not in _ALONE


def _placed(laid: Laid, piece: Piece) -> Chunk:
    block = laid.blocks[bisect_right(laid.blocks, piece.start, key=lambda block: block.start) - 1]
    return Chunk(piece.start, piece.end, piece.tokens, block.page, block.section)
