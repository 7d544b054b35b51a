"""Chunks of every text hold to their limits, whatever the tokenizer, and are cut at good places."""

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from jobs.retrieval.documents import Chunk
from tests.unit.workers.retrieval.parsing import samples
from workers.retrieval.parsing import blocks, chunking, markdown, plain
from workers.retrieval.parsing.blocks import Block, Laid, Reading
from workers.retrieval.parsing.chunking import PIECE, Tokens, pieces
from workers.retrieval.parsing.contract import Cutting, FileRefused, ParserLimits, Strategy

LIMITS = ParserLimits()
STRATEGIES: Sequence[Strategy] = ("static", "sentence", "structure")
FAMILIES = ("word_piece", "byte_level")


class Counting(Tokens):
    """Counts the characters that it is asked to tokenise."""

    read = 0

    def count(self, text: str) -> int:
        self.read += len(text)
        return super().count(text)

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        self.read += len(text)
        return super()._offsets(text)


def _paths() -> dict[str, Path]:
    folder = Path(tempfile.mkdtemp())
    return {"word_piece": samples.word_piece(), "byte_level": samples.byte_level(folder)}


TOKENS = {family: Counting.load(path) for family, path in _paths().items()}


def laid(text: str) -> Laid:
    return blocks.lay(markdown.read(text), LIMITS)


def cut(document: Laid, tokens: Tokens, most: int, overlap: int = 0, strategy: Strategy = "static") -> list[Chunk]:
    return list(chunking.chunks(document, tokens, Cutting(Path(), most, overlap, strategy), LIMITS))


def texts(document: Laid, chunks: Sequence[Chunk]) -> list[str]:
    return [document.text[chunk.start : chunk.end] for chunk in chunks]


def check(document: Laid, chunks: Sequence[Chunk], tokens: Tokens, most: int) -> None:
    """Check what holds for the chunks of every text."""
    covered = reached = 0
    for at, chunk in enumerate(chunks):
        text = document.text[chunk.start : chunk.end]
        assert text
        assert text == text.strip()
        assert chunk.tokens == tokens.count(text)
        assert chunk.tokens <= most or len(text) == 1
        assert not document.text[covered : chunk.start].strip()
        assert at == 0 or (chunk.start > chunks[at - 1].start and chunk.end > reached)
        covered = reached = chunk.end
    assert not document.text[covered:].strip()


# For every text

ALPHABET = st.sampled_from(
    [*"ab. \n\n!?,-#`|", "word ", "sentence. Next", "\n\n", "é", "中", "。", "😀", "👩‍👩‍👧", "ש", "\u200b", "e\u0301"]
)
TEXTS = st.lists(ALPHABET, min_size=1, max_size=300).map("".join) | st.text(max_size=400)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS, most=st.integers(1, 40), share=st.floats(0, 0.5))
def test_chunks_cover_the_text_in_order_and_keep_the_limit(
    family: str, strategy: Strategy, text: str, most: int, share: float
) -> None:
    tokens = TOKENS[family]
    if tokens.count(blocks.clean(text)) == 0:
        with pytest.raises(FileRefused, match="no text"):
            cut(laid(text), tokens, most)
        return
    document = laid(text)

    chunks = cut(document, tokens, most, int(most * share), strategy)

    check(document, chunks, tokens, most)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_long_prose_is_cut_well(family: str, strategy: Strategy) -> None:
    document = laid(samples.PROSE * 200)
    tokens = TOKENS[family]

    chunks = cut(document, tokens, 120, 20, strategy)

    check(document, chunks, tokens, 120)
    assert sum(chunk.tokens for chunk in chunks) / len(chunks) > 60


# Borders


NUMBERS = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (f"{NUMBERS}\n\nEleven\ntwelve. Thirteen", NUMBERS),
        (f"{NUMBERS}\nEleven. Twelve thirteen", NUMBERS),
        (f"{NUMBERS}. Eleven twelve thirteen", f"{NUMBERS}."),
        (f"{NUMBERS} eleven twelve, thirteen fourteen", f"{NUMBERS} eleven twelve,"),
        (f"{NUMBERS} eleven twelve unbelievableness", f"{NUMBERS} eleven twelve"),
    ],
)
def test_paragraph_goes_before_line_sentence_and_word(text: str, first: str) -> None:
    document = laid(text)

    assert texts(document, cut(document, TOKENS["word_piece"], 13))[0] == first


def test_overlap_is_in_tokens_and_begins_at_a_word() -> None:
    text = " ".join(f"word{n}" for n in range(200))
    document, tokens = laid(text), TOKENS["word_piece"]

    chunks = cut(document, tokens, 40, 10)

    for before, chunk in pairwise(chunks):
        shared = document.text[chunk.start : before.end]
        assert shared.startswith("word")
        assert 1 <= tokens.count(shared) <= 10


def test_sentence_strategy_cuts_at_sentence_end() -> None:
    text = "This first sentence is short. " + "And then it goes on without any end " * 3 + "until here. Done now."
    document = laid(text)

    chunks = cut(document, TOKENS["word_piece"], 24, 0, "sentence")

    assert texts(document, chunks)[0] == "This first sentence is short."
    assert texts(document, cut(document, TOKENS["word_piece"], 24, 0))[0] != "This first sentence is short."


def test_sentences_of_chinese_need_no_space() -> None:
    document = laid("今天天气很好。我们去公园散步。晚上回家吃饭。")

    assert texts(document, cut(document, TOKENS["word_piece"], 10, 0, "sentence"))[0] == "今天天气很好。"


GUIDE = """# Guide

Intro text here.

## Install

Run this first:

```
pip install x

pip check
```

Then go on.

| a | b |
|---|---|
| 1 | 2 |

## Use

Call it.
"""


def test_structure_mixes_no_sections_code_or_tables() -> None:
    document = laid(GUIDE)

    chunks = cut(document, TOKENS["word_piece"], 60, 0, "structure")

    assert texts(document, chunks) == [
        "# Guide\n\nIntro text here.",
        "## Install\n\nRun this first:",
        "```\npip install x\n\npip check\n```",
        "Then go on.",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "## Use\n\nCall it.",
    ]
    assert [chunk.section[-1] for chunk in chunks] == ["Guide", "Install", "Install", "Install", "Install", "Use"]


def test_structure_strategy_splits_only_blocks_above_limit() -> None:
    code = "```\n" + "\n".join(f"call({n})" for n in range(40)) + "\n```"
    document = laid(f"# Head\n\nText.\n\n{code}\n\nEnd.")
    tokens = TOKENS["word_piece"]

    chunks = cut(document, tokens, 50, 10, "structure")

    check(document, chunks, tokens, 50)
    assert texts(document, chunks)[0] == "# Head\n\nText."
    assert texts(document, chunks)[-1] == "End."
    assert all(text.startswith(("```", "call(")) for text in texts(document, chunks)[1:-1])


def test_chunk_knows_its_page_and_section() -> None:
    reading = Reading(iter([Block("Head", "heading", 1, 1), Block("a " * 30, page=1), Block("b " * 30, page=2)]))
    document = blocks.lay(reading, LIMITS)

    chunks = cut(document, TOKENS["word_piece"], 31)

    assert [(chunk.page, chunk.section) for chunk in chunks] == [(1, ("Head",)), (2, ("Head",))]


# Tokens that are not what they seem


def test_characters_of_many_tokens_are_not_torn() -> None:
    document, tokens = laid("😀" * 50), TOKENS["byte_level"]

    chunks = cut(document, tokens, 9)

    check(document, chunks, tokens, 9)
    assert set("".join(texts(document, chunks))) == {"😀"}
    assert len(chunks) > 10


def test_character_of_more_tokens_than_allowed_is_a_chunk() -> None:
    document = laid("😀😀")

    assert texts(document, cut(document, TOKENS["byte_level"], 2)) == ["😀", "😀"]


def test_family_of_emoji_stays_together_where_it_fits() -> None:
    family = "👩‍👩‍👧"
    document = laid(family * 8)

    found = texts(document, cut(document, TOKENS["byte_level"], 40))

    assert all(text.startswith("👩") and text.endswith("👧") for text in found)


def test_special_tokens_in_the_text_are_only_text() -> None:
    """Compare in `check` the chunks with the text."""
    document, tokens = laid("[SEP] one [CLS] two [MASK] " * 20), TOKENS["word_piece"]

    check(document, cut(document, tokens, 16, 4), tokens, 16)


# Long texts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [150_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("unit", ["a", "中", "ab.cd,ef", " "])
def test_many_characters_without_a_border_take_linear_work(family: str, unit: str, size: int) -> None:
    text, tokens = unit * (size // len(unit)), TOKENS[family]
    text = text if text.strip() else f"x{text}y"
    document = blocks.lay(plain.read_code(text), LIMITS)
    tokens.read = 0

    chunks = cut(document, tokens, 400, 200)

    assert tokens.read < 4 * len(text)
    assert max(chunk.end - chunk.start for chunk in chunks) <= 400 * 64
    assert all(chunk.tokens <= 400 for chunk in chunks)


def test_words_are_counted_once_where_that_is_exact() -> None:
    tokens = TOKENS["word_piece"]
    document = laid(samples.PROSE * 400)
    tokens.read = 0

    cut(document, tokens, 400, 50)

    assert tokens.read == len(document.text)


def test_pieces_make_up_the_text_and_are_bounded() -> None:
    text = samples.PROSE * 300 + "z" * (3 * PIECE)

    found = list(pieces(text))

    assert "".join(text[start:end] for start, end in found) == text
    assert max(end - start for start, end in found) <= PIECE


def test_a_text_of_nothing_has_no_pieces() -> None:
    assert list(pieces("")) == []


def test_end_of_text_is_always_character_border() -> None:
    family = "\U0001f468\u200d\U0001f469"

    assert chunking.character_border(f"a{family}", 0, 4) == 4
    assert chunking.character_border(f"a{family}b", 0, 3) == 1


def test_tokenizer_that_truncates_and_pads_does_not_here(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(samples.word_piece()))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "t.json"))

    assert Tokens.load(tmp_path / "t.json").count("word " * 20) == 20


@pytest.mark.parametrize(("most", "overlap"), [(0, 0), (10, 6), (10, -1)])
def test_cutting_that_makes_no_sense_is_no_value(most: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="hunk"):
        Cutting(Path(), most, overlap)


def test_too_many_tokens_and_none_are_refused() -> None:
    with pytest.raises(FileRefused, match="more than 10 tokens"):
        chunking.chunks(laid("word " * 50), TOKENS["word_piece"], Cutting(Path(), 10, 0), ParserLimits(tokens=10))
    with pytest.raises(FileRefused, match="no text"):
        chunking.chunks(laid("\u200b"), TOKENS["word_piece"], Cutting(Path(), 10, 0), LIMITS)
