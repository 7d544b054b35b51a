"""Which sentences and words a text has, and which of them matter."""

import pytest

from workers.middleware import context_strategies


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It rains. Does it? No! Well…  yes", ["It rains.", "Does it?", "No!", "Well…", "yes"]),
        ('He said "no." Then he left.\n\n---\nThe end', ['He said "no."', "Then he left.", "The end"]),
        ("Version 3.11 costs 1.5 euros.", ["Version 3.11 costs 1.5 euros."]),
        ("今日は雨です。明日は?はい。", ["今日は雨です。", "明日は?はい。"]),
        ("", []),
    ],
)
def test_sentences(text: str, found: list[str]) -> None:
    assert context_strategies.sentences(text) == found


def test_words_are_without_case_and_marks_and_wide_characters_stand_alone() -> None:
    assert context_strategies.words("The ÄPFEL, the 東京 tower_2") == {
        "the": 2, "äpfel": 1, "東": 1, "京": 1, "tower": 1, "2": 1,
    }  # fmt: skip


def test_rare_words_weigh_more_and_identical_texts_have_full_similarity() -> None:
    texts = ["the cat sleeps", "the dog sleeps", "the sun shines"]
    weighed, asked = context_strategies.weights(texts, "the cat, and the unknown")

    assert context_strategies.cosine(weighed[0], weighed[0]) == pytest.approx(1)
    assert weighed[0]["cat"] > weighed[0]["sleeps"] > weighed[0]["the"]
    assert context_strategies.cosine(asked, weighed[0]) > context_strategies.cosine(asked, weighed[1])
    assert "unknown" not in asked
    assert context_strategies.cosine(context_strategies.centre(weighed), weighed[0]) > 0.5
    assert context_strategies.weights([], "question") == ([], {})
