"""Splits: which files a row of a dataset goes to, by a hash of the row, so that other rows never move it.

    row ─▶ key ─▶ SHA-256 of seed and key ─▶ a point between 0 and 1 ─▶ the part in which the point lies
           the row itself, or its value at `by`                              train 0 ─────── 0.8 ── 0.9 ── 1 test

    random    by the row          group     by a value: all rows with the same value are in the same part
    k_fold    `fold_0` … have each row once, `train_0` … have the rows of all other folds
    temporal  by a time: the oldest rows are in the first part. The cuts depend on all rows of the version

The position of a row does not depend on the rows beside it, but for `temporal`.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from jobs.clock import read_time

MAX_PARTS: Final = 10
_ROUNDING: Final = 1e-6  # of the sum of the fractions
PartName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
Pointer = Annotated[
    str, Field(pattern=r"^(/[^/]+)+$", max_length=255, description="A JSON pointer to a value of each row: `/user/id`.")
]


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SplitPart(_Options):
    """A part of the rows, and the name of its file."""

    name: PartName
    fraction: float = Field(gt=0, le=1)


def _check_parts(parts: list[SplitPart]) -> list[SplitPart]:
    if len({part.name for part in parts}) < len(parts):
        raise ValueError("Two parts have the same name.")
    total = math.fsum(part.fraction for part in parts)
    if abs(total - 1) > _ROUNDING:
        raise ValueError(f"The fractions add up to {total:g}, and not to 1.")
    return parts


Parts = Annotated[list[SplitPart], Field(min_length=1, max_length=MAX_PARTS), AfterValidator(_check_parts)]


class _HashSplit(_Options):
    """A split by the hash of each row's key."""

    @property
    def key_pointer(self) -> str | None:
        """Return the pointer to the key of a row; None where it is the whole row."""
        return None

    @property
    def fractions(self) -> list[float]:
        raise NotImplementedError

    @property
    def names(self) -> list[str]:
        """Return the names of the files."""
        raise NotImplementedError

    def files_of(self, index: int) -> Sequence[int]:
        """Return the files, as indices of `names`, of the rows in the part at an index."""
        return (index,)

    def bounds(self) -> list[float]:
        """Return the points at which a part ends and the next one begins."""
        return list(accumulate(self.fractions))[:-1]

    def part_of(self, row: Mapping[str, Any], digest: bytes, seed: int, bounds: Sequence[float]) -> int:
        """Return the index of the part of a row with this SHA-256. Raises ValueError where it lacks the key."""
        pointer = self.key_pointer
        key = digest if pointer is None else canonical(value_at(row, pointer))
        point = int.from_bytes(hashlib.sha256(b"%d:" % seed + key).digest()[:8]) / 2**64
        return bisect_right(bounds, point)


class _PartSplit(_HashSplit):
    parts: Parts

    @property
    def fractions(self) -> list[float]:
        return [part.fraction for part in self.parts]

    @property
    def names(self) -> list[str]:
        return [part.name for part in self.parts]


class RandomSplit(_PartSplit):
    """Each row for itself. Equal rows are in the same part."""

    type: Literal["random"]


class GroupSplit(_PartSplit):
    """Rows with the same value at `by` are in the same part."""

    type: Literal["group"]
    by: Pointer

    @property
    def key_pointer(self) -> str:
        return self.by


class KFoldSplit(_HashSplit):
    """As many folds of the same size. `train_0` has the rows that are not in `fold_0`, and so on."""

    type: Literal["k_fold"]
    folds: int = Field(ge=2, le=MAX_PARTS)
    by: Pointer | None = Field(default=None, description="Rows with the same value there are in the same fold.")

    @property
    def key_pointer(self) -> str | None:
        return self.by

    @property
    def fractions(self) -> list[float]:
        return [1 / self.folds] * self.folds

    @property
    def names(self) -> list[str]:
        return [f"{kind}_{index}" for kind in ("fold", "train") for index in range(self.folds)]

    def files_of(self, index: int) -> Sequence[int]:
        return (index, *(self.folds + other for other in range(self.folds) if other != index))


class TemporalSplit(_PartSplit):
    """The oldest rows in the first part, by the time at `by`: seconds, or as ISO 8601 writes it.

    Rows of the same time are in the same part.
    """

    type: Literal["temporal"]
    by: Pointer

    def time_of(self, row: Mapping[str, Any]) -> float:
        """Return the time of a row. Raises ValueError."""
        try:
            return read_time(value_at(row, self.by))
        except ValueError:
            raise ValueError(f"The row has no time at '{self.by}': seconds, or a time as ISO 8601 writes it.") from None

    def cuts(self, times: Sequence[float]) -> list[float]:
        """Return the times at which the second part and each later one begin."""
        ordered = sorted(times)
        indices = (math.ceil(bound * len(ordered)) for bound in self.bounds())
        return [ordered[index] if index < len(ordered) else math.inf for index in indices]

    def part_of(self, row: Mapping[str, Any], digest: bytes, seed: int, bounds: Sequence[float]) -> int:  # noqa: ARG002 (as its base)
        """Return the index of the part of a row, where `bounds` are the `cuts`. Raises ValueError."""
        return bisect_right(bounds, self.time_of(row))


Split = Annotated[RandomSplit | GroupSplit | KFoldSplit | TemporalSplit, Field(discriminator="type")]
#: The split of a dataset that asks for none: a single file.
WHOLE: Final = RandomSplit(type="random", parts=[SplitPart(name="all", fraction=1.0)])
parse_split: Final = TypeAdapter[RandomSplit | GroupSplit | KFoldSplit | TemporalSplit](Split).validate_python


def canonical(value: Any) -> bytes:
    """Return a value in one spelling: two that differ in spaces or in the order of names are equal."""
    return msgspec.json.encode(value, order="deterministic")


def value_at(row: Any, pointer: str) -> Any:
    """Return the value at a JSON pointer (RFC 6901). Raises ValueError where there is none, or null."""
    value = row
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isascii() and name.isdigit() and int(name[:9]) < len(value):
            value = value[int(name[:9])]
        else:
            value = None
    if value is None:
        raise ValueError(f"The row has no value at '{pointer}'.")
    return value
