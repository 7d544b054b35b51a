"""What was found of one model, and several of them side by side. What is not known is said to be so, never guessed."""

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cli.terminal import cell

Scores = dict[str, float]


@dataclass(frozen=True, slots=True)
class Judged:
    """One model. None: not stated, not measured or not told."""

    model: str
    scores: Scores
    by_language: dict[str, Scores]
    truncated_share: float | None
    dimensions: int
    max_tokens: int | None
    license: str | None
    training_data: list[str] | None
    query_prompt: str | None
    passage_prompt: str | None
    prompts_used: bool
    latency_p50_ms: float
    latency_p95_ms: float
    tokens_per_second: float | None
    texts_per_second: float
    memory_bytes: int | None
    cost_per_million_tokens: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_FACTS: tuple[tuple[str, Callable[[Judged], str]], ...] = (
    ("truncated texts", lambda one: "not told" if one.truncated_share is None else f"{one.truncated_share:.1%}"),
    ("dimensions", lambda one: str(one.dimensions)),
    ("max tokens", lambda one: _or(one.max_tokens, "not stated")),
    ("licence", lambda one: _or(one.license, "not stated")),
    ("training data", lambda one: "not stated" if one.training_data is None else _short(one.training_data)),
    ("query prompt", lambda one: _prompt(one.query_prompt, used=one.prompts_used)),
    ("passage prompt", lambda one: _prompt(one.passage_prompt, used=one.prompts_used)),
    ("ms a query, p50", lambda one: f"{one.latency_p50_ms:.1f}"),
    ("ms a query, p95", lambda one: f"{one.latency_p95_ms:.1f}"),
    ("texts/s", lambda one: f"{one.texts_per_second:.1f}"),
    ("tokens/s", lambda one: "not told" if one.tokens_per_second is None else f"{one.tokens_per_second:.0f}"),
    ("memory of its worker", lambda one: "not measured" if not one.memory_bytes else f"{one.memory_bytes >> 20} MiB"),
    ("cost per 1M tokens", lambda one: _or(_rounded(one.cost_per_million_tokens), "-")),
)  # fmt: skip


def table(title: str, found: Sequence[Judged], width: int | None) -> str:
    """A column for each model."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, box=box.SIMPLE, title_justify="left")
    for name in ("", *(one.model for one in found)):
        shown.add_column(cell(name), overflow="fold")
    for name in found[0].scores:
        shown.add_row(name, *(f"{one.scores[name]:.4f}" for one in found))
    several = len(found[0].by_language) > 1  # one alone is all there is
    for language in found[0].by_language if several else ():
        for name in found[0].scores:
            shown.add_row(cell(f"{name}, {language}"), *(f"{one.by_language[language][name]:.4f}" for one in found))
    for name, fact in _FACTS:
        shown.add_row(name, *(cell(fact(one)) for one in found))
    out = io.StringIO()
    Console(file=out, width=width).print(shown)
    return out.getvalue()


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _or(value: object | None, otherwise: str) -> str:
    return otherwise if value is None else str(value)


def _prompt(prompt: str | None, *, used: bool) -> str:
    return "not taken by its server" if not used else _or(prompt and repr(prompt), "none")


def _short(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more or "none"
