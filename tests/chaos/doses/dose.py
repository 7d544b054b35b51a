"""The result of one dose: its id, what was done, the judgements with their figures, and the violations."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles


@dataclass(frozen=True, slots=True)
class Given:
    """The parameters of a dose: its folder, its seeded random numbers, and its share of the full dose."""

    folder: Path
    rng: random.Random
    share: float = 1.0

    def part(self, full: int) -> int:
        return max(1, round(full * self.share))


@dataclass(slots=True)
class Outcome:
    """`judged` are promises with the figures that were found, `violations` those that were broken."""

    dose: str
    judged: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def judge(self, what: str, *violations: str) -> None:
        """Record a promise, and all evidence against it."""
        self.judged.append(what)
        self.violations += [why for why in violations if why]

    def at_most(self, what: str, found: float, most: float, unit: str = "") -> None:
        """Record a figure with its upper bound."""
        told, bound = f"{what} {found:.4g}{unit}", f"{most:g}{unit}"
        self.judge(f"{told} (≤ {bound})", *([f"{told} is more than {bound}"] if found > most else []))


Run = Callable[[Given], Outcome]


def row(name: str, outcome: Outcome, seconds: float) -> str:
    """Return a line of the table, and one for each violation."""
    cells = (name, outcome.dose, "; ".join(outcome.judged), str(len(outcome.violations)), f"{seconds:.0f} s")
    lines = [f"| {' | '.join(cells)} |"]
    return "\n".join(lines + [f"    VIOLATION {name}: {why}" for why in outcome.violations])


HEAD = "| id | dose | judged | violations | took |\n|---|---|---|---|---|"


def p95(values: Sequence[float]) -> float:
    return quantiles(values, n=20)[-1] if len(values) > 1 else max(values, default=0.0)


def middle(values: Sequence[float]) -> float:
    return median(values) if values else 0.0
