# ruff: noqa: RUF001 (wide marks are what some of this is about)
"""Words where no spaces are written."""

import pytest

from workers.retrieval import wide


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
    assert list(wide.words(text)) == found
