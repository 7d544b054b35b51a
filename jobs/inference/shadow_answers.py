"""Answers of shadows beside those that the clients got, for online evaluations of an alias to grade.

    web process ──every 10 s──▶ shadow_answer ──▶ rounds of online evaluations      the newest of a project, of a day

A row is a line of a run: `{"item": {"input", "answer", "model"}, "sample": {"output_text"}}`. `input` is that of the
request, `answer` the text that the client got, `output_text` that of the shadow `model`.
"""

from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.inference.tables import ShadowAnswer

#: Bytes of a pair: larger ones are not kept.
MAX_BYTES: Final = 32 << 10
#: Pairs of a project, the newest, and seconds for which one is kept.
MAX_PAIRS: Final = 2_000
KEPT_SECONDS: Final = 86_400.0
_AT_ONCE: Final = 100  # rows that are read


class AnswerPair(NamedTuple):
    """A pair that is to be kept, as a line of a run."""

    project_id: str
    alias: str
    line: str


def pair_of(project_id: str, alias: str, *, given: Any, answer: str, model: str, output_text: str) -> AnswerPair | None:
    """Return the pair of a request with the input `given`; None where it is too large to be kept."""
    item = {"input": given, "answer": answer, "model": model}
    line = msgspec.json.encode({"item": item, "sample": {"output_text": output_text}})
    return AnswerPair(project_id, alias, line.decode()) if len(line) <= MAX_BYTES else None


def write(session: Session, pairs: Collection[AnswerPair]) -> None:
    """Keep pairs, and remove the oldest of projects that have too many."""
    if not pairs:
        return
    session.execute(insert(ShadowAnswer), [{**pair._asdict(), "created_at": now()} for pair in pairs])
    for project_id in sorted({pair.project_id for pair in pairs}):
        own = select(ShadowAnswer.id).where(ShadowAnswer.project_id == project_id)
        last = session.scalar(own.order_by(ShadowAnswer.id.desc()).offset(MAX_PAIRS).limit(1))
        if last is not None:
            of_project = ShadowAnswer.project_id == project_id
            session.execute(delete(ShadowAnswer).where(of_project, ShadowAnswer.id <= last))


def find(session: Session, project_id: str, alias: str, since: float, until: float) -> Iterator[tuple[str, str]]:
    """Yield the ids and the lines of the pairs of an alias, from a time on until before another."""
    rows = select(ShadowAnswer.id, ShadowAnswer.line).where(
        ShadowAnswer.project_id == project_id,
        ShadowAnswer.alias == alias,
        ShadowAnswer.created_at >= since,
        ShadowAnswer.created_at < until,
    )
    last, page = 0, rows.order_by(ShadowAnswer.id).limit(_AT_ONCE)
    while shown := session.execute(page.where(ShadowAnswer.id > last)).all():
        yield from ((str(number), line) for number, line in shown)
        last = shown[-1].id
