"""Sentences, of which indexing makes chunks: for every text all of it, in order, each within the limit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from jobs.retrieval.documents import Chunk, Document
from tests.unit.workers.retrieval.parsing.test_chunking import FAMILIES, LIMITS, TEXTS, TOKENS, check, laid
from workers.retrieval.ingestion import semantic
from workers.retrieval.parsing import blocks, chunking, contract
from workers.retrieval.parsing.blocks import Laid
from workers.retrieval.parsing.chunking import Tokens
from workers.retrieval.parsing.contract import Cutting, FileRefused

PERCENTILE = {"percentile": 95.0}


def sentences(document: Laid, tokens: Tokens, most: int) -> list[Chunk]:
    return list(chunking.sentences(document, tokens, Cutting(Path(), most, 0, "semantic"), LIMITS))


def cut(
    document: Laid,
    found: Sequence[Chunk],
    distances: Sequence[float],
    tokens: Tokens,
    most: int,
    wanted: dict[str, Any] = PERCENTILE,
) -> list[Chunk]:
    whole = Document(document.text, (), sentences=tuple(found))
    made = semantic.cut(whole, distances, tokens, most, wanted)
    assert made.sentences == ()
    return list(made.chunks)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS, most=st.integers(1, 40), data=st.data())
def test_chunks_that_fit_cover_every_text_for_all_distances(
    family: str, text: str, most: int, data: st.DataObject
) -> None:
    tokens = TOKENS[family]
    if tokens.count(blocks.clean(text)) == 0:
        with pytest.raises(FileRefused, match="no text"):
            sentences(laid(text), tokens, most)
        return
    document = laid(text)

    found = sentences(document, tokens, most)
    distances = data.draw(st.lists(st.floats(0, 2), min_size=len(found) - 1, max_size=len(found) - 1))
    chunks = cut(document, found, distances, tokens, most)

    check(document, found, tokens, most)
    check(document, chunks, tokens, most)
    assert cut(document, found, distances, tokens, most) == chunks


def shown(text: str, most: int = 60) -> list[str]:
    document = laid(text)
    return [document.text[one.start : one.end] for one in sentences(document, TOKENS["word_piece"], most)]


LONG = "This sentence has rather more than a dozen of words in it, so it stands alone"


def test_short_sentences_go_with_the_next_but_into_no_other_section() -> None:
    text = f"# One\n\n{LONG}. Yes. {LONG}! It ended.\n\n## Two\n\nNo. {LONG}.\n\n# Three\n\nShort."

    assert shown(text) == [
        f"# One\n\n{LONG}.",
        f"Yes. {LONG}!",
        "It ended.",
        f"## Two\n\nNo. {LONG}.",
        "# Three\n\nShort.",
    ]


def test_code_and_lists_are_cut_between_lines() -> None:
    line = "value = compute(one, two, three) + compute(four, five, six)"

    assert shown(f"```\n{line}\n{line}\nend. It\n```") == [f"```\n{line}", line, "end. It\n```"]


def test_a_sentence_that_is_too_long_is_cut() -> None:
    assert len(shown("word " * 100 + ".", 40)) == 3


def test_long_texts_without_a_border_take_linear_work() -> None:
    for text in ("a" * 300_000, ". " * 50_000, ".)" * 50_000, "# a\n\n" * 10_000):
        document = laid(text)
        TOKENS["word_piece"].read = 0
        sentences(document, TOKENS["word_piece"], 254)
        assert TOKENS["word_piece"].read < 12 * len(document.text)


@pytest.mark.parametrize("bad", [Chunk(0, 99, 1), Chunk(2, 2, 1), Chunk(-1, 2, 1), Chunk(0, 2, -1)])
def test_sentences_that_make_no_sense_are_not_believed(bad: Chunk) -> None:
    with pytest.raises(FileRefused, match="makes no sense"):
        contract.check(Document("text", (), sentences=(bad,)), LIMITS)


# What is made of them


def five(*, most: int = 1000, distances: Sequence[float], wanted: dict[str, Any] = PERCENTILE) -> list[int]:
    """How many of five sentences are in each chunk."""
    document = laid("\n\n".join(f"{LONG} {n}." for n in range(5)))
    found = sentences(document, TOKENS["word_piece"], 254)
    chunks = cut(document, found, distances, TOKENS["word_piece"], most, wanted)
    return [document.text[chunk.start : chunk.end].count(LONG) for chunk in chunks]


def test_a_chunk_ends_where_the_distance_is_above_the_percentile() -> None:
    assert five(distances=[0.1, 0.7, 0.2, 0.1]) == [2, 3]
    assert five(distances=[0.1, 0.7, 0.2, 0.8], wanted={"percentile": 50.0}) == [2, 2, 1]
    assert five(distances=[0.3, 0.3, 0.3, 0.3]) == [5]


def test_a_chunk_ends_at_a_peak_and_not_on_its_slopes() -> None:
    assert five(distances=[0.4, 0.8, 0.5, 0.1], wanted={"threshold": 0.3}) == [2, 3]
    assert five(distances=[0.1, 0.8, 0.8, 0.1], wanted={"threshold": 0.3}) == [2, 3]


def test_a_chunk_ends_where_the_distance_is_above_a_given_threshold() -> None:
    assert five(distances=[0.1, 0.7, 0.2, 0.3], wanted={"threshold": 0.25}) == [2, 2, 1]
    assert five(distances=[0.1, 0.7, 0.2, 0.1], wanted={"threshold": 0.9}) == [5]


def test_oversized_chunk_is_cut_at_largest_distance_in_its_second_half() -> None:
    assert five(most=75, distances=[0.3, 0.2, 0.1, 0.1], wanted={"threshold": 0.9}) == [2, 3]
    assert five(most=75, distances=[0.3, 0.1, 0.2, 0.1], wanted={"threshold": 0.9}) == [3, 2]


def test_windows_hold_neighbouring_sentences_within_limit() -> None:
    document = laid("\n\n".join(f"{LONG} {n}." for n in range(5)))
    whole = Document(document.text, (), sentences=tuple(sentences(document, TOKENS["word_piece"], 254)))

    def numbers(most: int) -> list[list[int]]:
        windows = list(semantic.windows(whole, most))
        assert all(TOKENS["word_piece"].count(window) <= most for window in windows)
        return [[int(word[0]) for word in window.split() if word[0].isdigit()] for window in windows]

    assert numbers(254) == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4], [4]]
    assert numbers(50) == [[0], [0, 1], [0, 1], [1, 2], [2, 3], [3, 4], [4]]
    assert numbers(25) == [[0], [0], [0], [1], [2], [3], [4]]


def test_a_chunk_is_in_the_language_that_most_of_it_is_in() -> None:
    document = laid("\n\n".join(f"{LONG} {n}." for n in range(3)))
    found = sentences(document, TOKENS["word_piece"], 254)
    mixed = [replace(one, language=name) for one, name in zip(found, ("de", None, "de"), strict=True)]

    def language(of: Sequence[Chunk]) -> str | None:
        [chunk] = cut(document, of, [0.0, 0.0], TOKENS["word_piece"], 254)
        return chunk.language

    assert (language(found), language(mixed), language([found[0], mixed[0], found[2]])) == (None, "de", None)


def test_distances_compare_text_before_and_after_each_boundary() -> None:
    one, two = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    whole, sliced = semantic.Distances(), semantic.Distances()
    row = [one, one, one, one, two, two, None, one]  # of six sentences

    whole.add(row)
    for vector in row:
        sliced.add([vector])

    assert whole.values == sliced.values == [0.0, 1.0, 1.0, 0.0, 1.0]
