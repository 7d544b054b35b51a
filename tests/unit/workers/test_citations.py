"""Citations: by the model's markers, else by words."""

import pytest

from jobs.searches import Found
from workers.citations import citations

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
    assert citations("Purr [1]", [CATS]) == [
        {"type": "file_citation", "index": 5, "file_id": "file-1", "filename": "cats.md"}
    ]
