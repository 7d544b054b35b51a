"""The report of a migration: a row for each object, with its outcome and the reason."""

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

from cli.terminal import visible


class MigrationKind(StrEnum):
    """A kind of objects, in the order in which they are made: what others name comes first."""

    FILE = "file"
    PROMPT = "prompt"
    EVAL = "eval"
    EVAL_RUN = "eval_run"
    VECTOR_STORE = "vector_store"
    FINE_TUNING_JOB = "fine_tuning_job"
    CHAT_COMPLETION = "chat_completion"
    ALIAS = "alias"


class MigrationOutcome(StrEnum):
    SAME = "same"
    DIFFERENT = "different"
    LOST = "lost"
    FAILED = "failed"
    PRESENT = "present"


#: The outcomes in words, as tables show them.
WORDS: Final = {
    MigrationOutcome.SAME: "comes over",
    MigrationOutcome.DIFFERENT: "comes over differently",
    MigrationOutcome.LOST: "is lost",
    MigrationOutcome.FAILED: "failed",
    MigrationOutcome.PRESENT: "is here already",
}


@dataclass(frozen=True, slots=True)
class ReportRow:
    """The outcome of one object. `origin_id` is its id elsewhere, `id` the one here, None where there is none yet."""

    kind: MigrationKind
    origin_id: str
    id: str | None = None
    outcome: MigrationOutcome = MigrationOutcome.SAME
    reason: str = ""


@dataclass(slots=True)
class Report:
    """The rows of a migration. `applied` is false for a dry run. `created_at` is in unix seconds."""

    source: str
    applied: bool
    rows: list[ReportRow] = field(default_factory=list)
    created_at: int = field(default_factory=lambda: int(time.time()))

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of objects with each outcome."""
        numbers = Counter(row.outcome for row in self.rows)
        return {outcome.value: numbers[outcome] for outcome in MigrationOutcome}

    @property
    def name(self) -> str:
        """Return the name of the report's files, without a suffix."""
        return f"migration-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(self.created_at))}"

    def to_json(self) -> dict[str, Any]:
        return {
            "object": "migration.report",
            "created_at": self.created_at,
            "source": self.source,
            "applied": self.applied,
            "counts": self.counts,
            "rows": [asdict(row) for row in self.rows],
        }

    def to_markdown(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.created_at))
        tense = "Applied." if self.applied else "A dry run: nothing was changed."
        counts = [(WORDS[MigrationOutcome(name)], number) for name, number in self.counts.items() if number]
        rows = [(row.kind, row.origin_id, WORDS[row.outcome], row.id or "", row.reason) for row in self.rows]
        return "\n".join([
            "# Migration from OpenAI", "", f"Source: {_cell(self.source)}. {when}. {tense}", "",
            *_table(("outcome", "objects"), counts), "",
            *_table(("kind", "id there", "outcome", "id here", "reason"), rows), "",
        ])  # fmt: skip


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _cell(value: object) -> str:
    """Return a value as a cell of a table in Markdown, where it is text and nothing else."""
    text = visible(str(value)).replace("&", "&amp;").replace("<", "&lt;")
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`").replace("[", "\\[")
