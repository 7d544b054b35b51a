# ruff: noqa: RUF001 (wide marks are what some of this is about)
"""Test the words of texts in any writing, and near duplicates by their words."""

import pytest

from jobs.retrieval import words
from jobs.retrieval.searches import FoundChunk, Search
from workers.retrieval import lexical
from workers.retrieval.lexical import distinct, likeness, shingles
from workers.retrieval.search import choose


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("30天的年假 is OK", ["30", "天的", "的年", "年假", "is", "OK"]),
        ("猫，와 고양이 a_b", ["猫", "와", "고양이", "a_b"]),
        ("トム・ソーヤー", ["トム", "ソー", "ーヤ", "ヤー"]),
        ("人々 〇 𠮷野家", ["人々", "〇", "𠮷野", "野家"]),
        (" … ", []),
    ],
)
def test_two_wide_characters_side_by_side_are_a_word(text: str, found: list[str]) -> None:
    assert list(words.words_of(text)) == found


def found(name: str, text: str, score: float = 0.5) -> FoundChunk:
    return FoundChunk(name, f"{name}.txt", score, text, None, {})


KIWI = found("kiwi", "The kiwi is a flightless bird of the forest.", 0.9)
COPY = found("copy", "the KIWI is a flightless bird, of the forest", 0.8)
NEAR = found("near", "The kiwi is a flightless bird of the plains.", 0.7)
LAVA = found("lava", "Lava flows from a volcano into the sea.", 0.6)


def names(kept: tuple[list[FoundChunk], int]) -> tuple[list[str], int]:
    return [one.file_id for one in kept[0]], kept[1]


def test_the_better_of_two_stays() -> None:
    assert names(distinct([KIWI, COPY, NEAR, LAVA], 0.9, 10)) == (["kiwi", "near", "lava"], 1)
    assert names(distinct([COPY, KIWI, NEAR, LAVA], 0.7, 10)) == (["copy", "lava"], 2)


def test_duplicates_beyond_limit_are_not_counted() -> None:
    assert names(distinct([KIWI, COPY, LAVA, COPY], 0.9, 2)) == (["kiwi", "lava"], 1)


def test_texts_with_distinct_or_no_words_are_retained() -> None:
    empty = [found("a", ""), found("b", " … "), found("c", "kiwi"), found("d", "kiwi"), found("e", "emu")]

    assert names(distinct(empty, 0.9, 10)) == (["a", "b", "c", "e"], 1)


def test_texts_without_spaces_are_compared_by_their_characters() -> None:
    leave = "员工每年有三十天的年假,未使用的年假可以顺延到明年三月,但是每一次都需要得到主管的批准和同意"
    same = [found("a", f"{leave}。"), found("b", f"{leave}!"), found("c", f"{leave}书。"), found("d", leave[::-1])]

    assert names(distinct(same, 0.9, 10)) == (["a", "d"], 2)


@pytest.mark.parametrize(("one", "other", "alike"), [("a b c d", "a b c d", 1.0), ("a b c d", "a b c e", 1 / 3)])
def test_likeness_is_the_share_of_triples(one: str, other: str, alike: float) -> None:
    assert likeness(shingles(one), shingles(other)) == pytest.approx(alike)


def test_threshold_filters_chunks_and_deduplication_is_opt_in() -> None:
    search = Search(model="m", store_id="vs", queries=("q",), threshold=0.65, limit=10)

    plain = choose(search, [KIWI, COPY, NEAR, LAVA])
    strict = choose(Search(model="m", store_id="vs", queries=("q",), deduplicate=0.9), [KIWI, COPY])

    assert ([one.file_id for one in plain.chunks], plain.duplicates) == (["kiwi", "copy", "near"], None)
    assert ([one.file_id for one in strict.chunks], strict.duplicates) == (["kiwi"], 1)


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("Who pays for trips?", "pays trips?"),
        ("trips for employees", "trips employees"),
        ("Wie zahlt die Firma für die Reisen?", "zahlt Firma Reisen?"),
        ("Qui paie pour les voyages ?", "paie voyages"),
        ("¿Quién paga por los viajes de la empresa?", "¿Quién paga viajes empresa?"),
        ("Кто платит за поездки и почему", "платит поездки"),
        ("यात्रा के लिए कौन भुगतान करता है", "यात्रा भुगतान"),
    ],
)
def test_stop_words_of_its_language_are_left_out_of_a_query(query: str, left: str) -> None:
    assert lexical.keywords(query) == left


@pytest.mark.parametrize("query", ["", "?", "To be, or not to be?", "谁支付旅费？", "volcano lava", "\ud800"])
def test_a_query_of_nothing_else_stays_as_it_is(query: str) -> None:
    assert lexical.keywords(query) == query


@pytest.mark.parametrize("query", ["mit license", "die casting", "los angeles"])
def test_single_foreign_stop_word_stays_in_query(query: str) -> None:
    assert lexical.keywords(query) == query


def test_foreign_stop_words_stay_in_english_query() -> None:
    assert lexical.keywords("why did he die in the war") == "die war"  # both are some in German
