"""The cases of an ended run, for its retry: the grades that stay, and what the others were graded by.

    rows      {"number", "item", "sample", …}       the run's file of lines, one for each case
    grades    an output item                        the record of the line in a segment; none where it was not graded

A case whose grade stays has a row of its own kind in the retry, which may be retried too: {"number", "kept"}.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from jobs.batches import lines
from jobs.errors import NotFound
from jobs.evals import runs
from jobs.evals.graders.base import Answer
from jobs.evals.tables import EvalRun
from jobs.ledger.tables import Job
from workers.batches.finishing import output_line, records_of, shards_of
from workers.runtime.context import Context

Judgements = dict[int, dict[str, Answer]]


class _Result(msgspec.Struct):
    error: Any = None


class _Grades(msgspec.Struct):
    """The parts of an output item that tell what errored."""

    status: str
    results: list[_Result]


class Row(msgspec.Struct, omit_defaults=True):
    """A line of a run: what grading needs to know of a case, or the output item that is `kept`.

    `shown` is the sample as clients see it. An imported case has its `results`.
    """

    number: int
    item: dict[str, Any] = {}
    sample: dict[str, Any] | None = None
    shown: dict[str, Any] = {}
    judgements: dict[int, dict[str, tuple[int, Any]]] = {}
    results: list[dict[str, Any]] = []
    kept: msgspec.Raw = msgspec.Raw()

    def answers(self) -> Judgements:
        """Return what judges answered, by criterion and key."""
        return {
            criterion: {key: Answer(*answer) for key, answer in answers.items()}
            for criterion, answers in self.judgements.items()
        }


decode_row = msgspec.json.Decoder(Row).decode
_decode_grades = msgspec.json.Decoder(_Grades).decode


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an ended run has of a case. `kept` is the output item that stays; with it nothing is asked or graded again.

    `errored` are the criteria without a score.
    """

    number: int
    item: dict[str, Any]
    sample: dict[str, Any] | None
    shown: dict[str, Any]
    judgements: Judgements = field(default_factory=dict)
    kept: bytes = b""
    errored: frozenset[int] = frozenset()

    @property
    def needs_sample(self) -> bool:
        return not self.kept and self.sample is None

    def needs_judgement(self, criterion: int) -> bool:
        return self.needs_sample or criterion in self.errored


def earlier_cases(context: Context, run_id: str) -> Iterator[Earlier]:
    """Yield the cases of an ended run in their order. Raises NotFound, where the run was deleted."""
    with context.db.read() as session:
        job = session.get(Job, run_id)
        if job is None or session.get(EvalRun, run_id) is None:
            raise NotFound
    with context.storage.reader(job.input_path or "") as handle:
        for shard, segments in shards_of(context, run_id):
            records = records_of(context, segments)
            for line, raw in enumerate(lines.split(handle.read(shard.length))):
                graded = output_line(context, records[line][1]) if line in records else None
                yield _earlier(decode_row(raw), graded)


def _earlier(row: Row, graded: bytes | None) -> Earlier:
    common: dict[str, Any] = {"item": row.item, "sample": row.sample, "shown": row.shown}
    if row.kept:
        return Earlier(row.number, kept=bytes(row.kept), **common)
    grades = _decode_grades(graded) if graded is not None else None
    if grades is not None and graded is not None and grades.status != runs.ERRORED:
        return Earlier(row.number, kept=graded, **common)
    results = grades.results if grades else ()
    errored = frozenset(index for index, result in enumerate(results) if result.error is not None)
    return Earlier(row.number, judgements=row.answers(), errored=errored, **common)
