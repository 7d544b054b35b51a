"""Splits: the shares of the parts, rows that keep their part, and values at pointers."""

import hashlib
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from jobs.datasets.splits import WHOLE, TemporalSplit, canonical, parse_split, value_at

PARTS = [{"name": "train", "fraction": 0.8}, {"name": "test", "fraction": 0.2}]
#: The document of RFC 6901, section 5.
RFC_6901: dict[str, Any] = {
    "foo": ["bar", "baz"], "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6, " ": 7, "m~n": 8,
}  # fmt: skip


def names_of(split: Any, row: dict[str, Any], seed: int = 0) -> list[str]:
    """Return the files that a row goes to."""
    digest = hashlib.sha256(canonical(row)).digest()
    return [split.names[index] for index in split.files_of(split.part_of(row, digest, seed, split.bounds()))]


def test_parts_have_their_shares_of_rows() -> None:
    split = parse_split({"type": "random", "parts": PARTS})

    counts = Counter(name for n in range(10_000) for name in names_of(split, {"id": n}))

    assert abs(counts["train"] - 8000) < 160  # four standard deviations


def test_equal_rows_in_two_spellings_are_in_the_same_part() -> None:
    split = parse_split({"type": "random", "parts": PARTS})

    assert all(names_of(split, {"a": n, "b": 2}) == names_of(split, {"b": 2, "a": n}) for n in range(50))


def test_seed_moves_rows() -> None:
    split = parse_split({"type": "random", "parts": PARTS})

    assert any(names_of(split, {"id": n}, 1) != names_of(split, {"id": n}, 2) for n in range(50))


def test_rows_of_a_group_are_in_the_same_part() -> None:
    split = parse_split({"type": "group", "by": "/user/id", "parts": PARTS})

    for user in range(40):
        assert len({names_of(split, {"user": {"id": user}, "n": n})[0] for n in range(10)}) == 1


def test_each_row_is_in_its_fold_and_in_the_training_files_of_all_others() -> None:
    split = parse_split({"type": "k_fold", "folds": 3})

    for n in range(60):
        fold, *trainings = names_of(split, {"id": n})
        own = fold.removeprefix("fold_")
        assert trainings == [f"train_{index}" for index in range(3) if str(index) != own]


def test_rows_of_the_same_time_are_not_cut_apart() -> None:
    split = parse_split({"type": "temporal", "by": "/at", "parts": PARTS})
    assert isinstance(split, TemporalSplit)

    bounds = split.cuts([1.0] * 7 + [2.0] * 3)

    assert [split.part_of({"at": at}, b"", 0, bounds) for at in (1, 2)] == [0, 1]
    assert split.cuts([5.0]) == [float("inf")]  # the single row is in the first part


def test_rows_of_a_dataset_without_a_split_are_in_a_single_file() -> None:
    assert {name for n in range(50) for name in names_of(WHOLE, {"id": n})} == {"all"}


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ('/k"l', 6),
        ("/ ", 7),
        ("/m~0n", 8),
    ],
)
def test_pointer_has_the_value_of_its_standard(pointer: str, value: Any) -> None:
    assert value_at(RFC_6901, pointer) == value


@pytest.mark.parametrize("pointer", ["/none", "/foo/2", "/foo/bar", "/foo/-", "/a~1b/c"])
def test_pointer_to_nothing_is_an_error(pointer: str) -> None:
    with pytest.raises(ValueError, match="no value at"):
        value_at(RFC_6901, pointer)


@pytest.mark.parametrize(
    "split",
    [
        {"type": "random", "parts": [{"name": "a", "fraction": 0.8}, {"name": "b", "fraction": 0.3}]},
        {"type": "random", "parts": [{"name": "a", "fraction": 0.5}, {"name": "a", "fraction": 0.5}]},
        {"type": "random", "parts": []},
        {"type": "group", "parts": PARTS},
        {"type": "k_fold", "folds": 1},
        {"type": "k_fold", "folds": 11},
        {"type": "temporal", "by": "at", "parts": PARTS},
    ],
)
def test_split_that_parts_no_rows_is_refused(split: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parse_split(split)
