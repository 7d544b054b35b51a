"""Bad inputs: to what part a case belongs, its expected outcome, and how it is tried.

A case passes when what it got is, word for word, what was expected; when nothing was created that should not be; when
no answer was a 5xx or took longer than it may; and when neither process grew by 200 MB meanwhile.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.badinputs.world import World

MOST_GROWTH = 200 << 20
#: An answer takes less than this, unless a case says more.
SECONDS = 2.0

#: The settings of each world that cases ask for.
WORLDS: Mapping[str, Mapping[str, str]] = {
    "plain": {"log_level": "DEBUG"},
    "open": {
        "webhook_allow_private": "true",
        "batch_max_lines": "1000000",
        "file_max_bytes": "300000000",
    },
    "library": {"file_max_bytes": "300000000"},
    "sourced": {"file_max_bytes": "20000000"},
    "strict": {"wrong_keys_per_minute": "100"},
    "quota": {"project_max_queued_tokens": "10000"},
}


@dataclass(frozen=True, slots=True)
class Case:
    """`creates`: something may have been made. `seconds`: the slowest answer may take so long.

    `full`: one of many of its kind, which only `--full` tries.

    `storm`: so many come at once that some may be told 503 and `Retry-After`; they come again.
    """

    area: str
    name: str
    expected: str
    run: Callable[[World], str]
    creates: bool = False
    seconds: float = SECONDS
    storm: bool = False
    world: str = "plain"
    full: bool = False

    @property
    def id(self) -> str:
        return f"{self.area}: {self.name}"


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a case. `got` lists the answer, and then everything else that should not have happened."""

    case: Case
    got: str
    slowest: float
    growth: int

    @property
    def passed(self) -> bool:
        return self.got == self.case.expected


class Worlds:
    """Starts each world when the first case asks for it, and ends them all. `margin`: as for `World`."""

    def __init__(self, *, full: bool = False, margin: float = 1.0) -> None:
        self.full, self.margin = full, margin
        self._worlds: dict[str, World] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="nightmill-bad-")))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def of(self, case: Case) -> World:
        if case.world not in self._worlds:
            world = World(self._folder / case.world, full=self.full, margin=self.margin, **WORLDS[case.world])
            self._worlds[case.world] = self._stack.enter_context(world)
        return self._worlds[case.world]

    def judge(self, case: Case) -> Result:
        world = self.of(case)
        before = world.created()
        world.noted.clear()
        sizes = {role: process.begin() for role, process in world.processes.items()}
        try:
            got = case.run(world)
        except Exception as error:  # noqa: BLE001 (a row of the table like any other)
            got = f"{type(error).__name__}: {error}"
        growth = max(process.peak() - sizes[role] for role, process in world.processes.items())
        slowest = max((seconds for _, seconds in world.noted), default=0.0)
        return Result(case, "; ".join([got, *_besides(case, world, before, slowest, growth)]), slowest, growth)


def _besides(case: Case, world: World, before: Mapping[str, int], slowest: float, growth: int) -> Iterator[str]:
    after = world.created()
    made = {name: after[name] - before[name] for name in after if after[name] > before[name]}
    if made and not case.creates:
        yield f"created {made}"
    if failures := sorted({status for status, _ in world.noted if status >= 500} - ({503} if case.storm else set())):
        yield f"answered {failures}"
    if slowest > case.seconds * world.margin:
        yield f"took {slowest:.1f} s"
    if growth > MOST_GROWTH:
        yield f"grew by {growth >> 20} MB"
