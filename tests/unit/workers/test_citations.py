"""Citations: by the model's markers, else by words."""

import re

import msgspec
import pytest

from jobs.searches import Found
from workers.citations import citations, support

CATS = Found("file-1", "cats.md", 0.9, "Cats purr when they are content.", None, {})
DOGS = Found("file-2", "dogs.md", 0.5, "Dogs bark at the mailman.", None, {})


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
def test_an_answer_from_elsewhere_cites_nothing(text: str) -> None:
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
    assert support(text, [CATS, DOGS]) == pytest.approx(share)


@pytest.mark.parametrize("said", ["cat [1] ", "cat purrs. [1]", "\n[1]"])
def test_an_answer_is_read_once_however_many_markers_it_has(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    text, read = said * 500, 0

    class Counted:
        fullmatch = staticmethod(re.compile(r"\w{4,}").fullmatch)

        def findall(self, text: str) -> list[str]:
            nonlocal read
            read += len(text)
            return re.findall(r"\w+", text)

    for name in ("_WORD", "_ANY_WORD"):
        monkeypatch.setattr(f"workers.citations.{name}", Counted())

    assert len(citations(text, [CATS, DOGS])) == 500
    assert read <= len(text) + len(CATS.text + DOGS.text)
