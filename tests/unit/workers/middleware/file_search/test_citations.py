# ruff: noqa: RUF001 (wide marks are what some of this is about)
"""Citations: by the model's markers, else by words."""

import msgspec
import pytest

from jobs.retrieval import words
from jobs.retrieval.searches import FoundChunk
from workers.middleware.file_search.excerpts import citations

CATS = FoundChunk("file-1", "cats.md", 0.9, "Cats purr when they are content.", None, {})
DOGS = FoundChunk("file-2", "dogs.md", 0.5, "Dogs bark at the mailman.", None, {})


def cited(text: str) -> list[tuple[str, int]]:
    return [(one["file_id"], one["index"]) for one in citations(text, [CATS, DOGS])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("They purr [1]. Dogs bark [2].", [("file-1", 10), ("file-2", 25)]),
        ("Both do [1, 2].", [("file-1", 8), ("file-2", 8)]),
        ("Nothing says so [7].", []),
        ("See section [0] or [99].", []),
    ],
)
def test_a_marker_cites_the_excerpt_of_its_number(text: str, expected: list[tuple[str, int]]) -> None:
    assert cited(text) == expected


def test_without_markers_the_excerpt_that_has_the_words_is_cited_at_the_end() -> None:
    text = "Dogs bark at the mailman."

    assert cited(text) == [("file-2", len(text))]


@pytest.mark.parametrize("text", ["", "I do not know.", "Fish swim quietly through coral reefs."])
def test_answer_without_file_content_cites_nothing(text: str) -> None:
    assert cited(text) == []


def test_an_annotation_has_openai_s_names() -> None:
    where = msgspec.structs.replace(CATS, n=3, meta={"start": 120, "end": 152, "tokens": 7})

    assert citations("Purr [1]", [where]) == [
        {
            "type": "file_citation", "index": 5, "file_id": "file-1", "filename": "cats.md",
            "chunk": 3, "start": 120, "end": 152, "support": 1.0,
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fish swim through coral reefs [1].", []),
        ("Fish swim through coral reefs. [2] They purr when content [1].", [("file-1", 58)]),
        ("Fish swim [1].", [("file-1", 10)]),
        ("[1]", [("file-1", 0)]),
        ("Fish swim through reefs.[1] Cats purr often[2][1].", [("file-1", 46)]),
        ("Cats purr.\n[1] Fish swim through reefs [1]", [("file-1", 11)]),
    ],
)
def test_a_marker_is_checked_against_the_excerpt_that_it_names(text: str, expected: list[tuple[str, int]]) -> None:
    assert cited(text) == expected


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("Cats purr, dogs bark [2].", 1.0),
        ("Cats purr, fish swim.", 0.5),
        ("Fish swim.", 0.0),
        ("", 0.0),
        ("42", 0.0),
        ("at", 1.0),
    ],
)
def test_support_is_the_share_of_words_that_stand_in_the_excerpts(text: str, share: float) -> None:
    assert words.support(text, [CATS.text, DOGS.text]) == pytest.approx(share)


LEAVE = FoundChunk(
    "leave", "a.md", 0.9, "员工每年有三十天的年假，未使用的年假可以顺延到明年三月，需要主管批准。可分30天。", None, {}
)  # fmt: skip
REST = FoundChunk("rest", "b.md", 0.5, "従業員は毎年三十日の有給休暇を取得できます。上司の承認が必要です。", None, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("根据公司的规定，员工每年享有三十天年假，未用的年假可顺延至次年三月，但需要主管的批准 [1]。", [("leave", 43)]),
        ("根据公司的规定，员工每年享有三十天年假，未用的年假可顺延至次年三月，但需要主管的批准。", [("leave", 43)]),
        ("会社の規定では、従業員には毎年三十日の有給休暇があります[2]。", [("rest", 28)]),
        ("公司提供免费午餐和健身房[1]。", []),
        ("员工有三十天年假。海水随着月亮涨落[1]。", []),
        ("员工有三十天年假。[1]海水随着月亮涨落[1]！", [("leave", 9)]),
        ("他说：“员工有三十天年假。”[1]海水随着月亮涨落。", [("leave", 14)]),
        ("他说：“「员工有三十天年假！」”[1]海水随着月亮涨落？", [("leave", 16)]),
    ],
)
def test_where_no_spaces_are_written_neighbouring_characters_are_words(
    text: str, expected: list[tuple[str, int]]
) -> None:
    assert [(one["file_id"], one["index"]) for one in citations(text, [LEAVE, REST])] == expected


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("员工每年有三十天的年假。", 1, 1),
        ("根据公司的规定，员工每年享有三十天年假，未用的年假可顺延至次年三月，但需要主管的批准 [1]。", 0.6, 0.8),
        ("従業員は毎年三十日の有給休暇を取れますが、上司の承認が必要となります。", 0.6, 0.9),
        ("30天。", 1, 1),
        ("海水的潮汐是由月球的引力引起的，每天有两次涨潮和两次落潮。", 0, 0.1),
        ("公司为员工提供免费的午餐和健身房，加班可以获得双倍的工资。", 0, 0.2),
        ("潮の満ち引きは月の引力によって起こります。", 0, 0.2),
    ],
)
def test_support_recognizes_paraphrases_in_languages_without_spaces(text: str, least: float, most: float) -> None:
    assert least <= words.support(text, [LEAVE.text, REST.text]) <= most


@pytest.mark.parametrize("said", ["cat [1] ", "cat purrs. [1]", "\n[1]", "猫[1]。", "猫叫。[1]"])
def test_an_answer_is_read_once_however_many_markers_it_has(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    text, read = said * 500, 0
    runs = words.runs

    def counted(text: str) -> list[str]:
        nonlocal read
        read += len(text)
        return runs(text)

    monkeypatch.setattr(words, "runs", counted)

    assert len(citations(text, [CATS, DOGS])) == 500
    assert read <= len(text) + len(CATS.text + DOGS.text)
