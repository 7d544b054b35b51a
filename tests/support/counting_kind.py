"""The row of a kind of job that the product does not know. A job of the kind counts, in one line for each number."""

from operator import itemgetter
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.kinds import Kind, Payload, Retry
from jobs.ledger.tables import Job

NAME: Final = "counting"
#: The jobs that have ended, with their states.
ENDED: Final[list[str]] = []


class Counting(Payload):
    """Count to `to` for the eval `eval_id`."""

    to: int
    eval_id: str


def submit(session: Session, project_id: str, *, actor: str, **columns: Any) -> Job:
    payload = {"to": 5, "eval_id": "eval_1"}
    job = Job(
        id=new_id(COUNTING.prefix),
        project_id=project_id,
        kind=NAME,
        payload=payload,
        **COUNTING.times(now()),
        **columns,
    )
    return ledger.submit(session, job, actor=actor)


def _retry(session: Session, request: Retry) -> Job:
    return submit(session, request.job.project_id, actor=request.actor, **request.columns)


COUNTING: Final = Kind(
    NAME,
    "Counting",
    "count_",
    Counting,
    {"succeeded": "counting.counted"},
    {"counting.number.said": "number_"},
    resources=("numbers",),
    links={"eval_id": itemgetter("eval_id")},
    window=None,
    retry=_retry,
    stored_bytes={
        "numbers": select(Job.project_id, func.sum(Job.completed)).where(Job.kind == NAME).group_by(Job.project_id)
    },
    ended=lambda _session, job: ENDED.append(f"{job.id} {job.state}"),
)
