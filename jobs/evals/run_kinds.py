"""The two kinds of jobs that a run of an eval is made of: their rows, and the retry of a run."""

from operator import itemgetter
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import InvalidRequest
from jobs.evals import evals, runs
from jobs.evals.runs import Evaluation, Sampling
from jobs.evals.tables import EvalRun
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.kinds import Kind, Retry
from jobs.ledger.progress import outcomes
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.usage.project_limits import limit_of


def _retry(session: Session, request: Retry) -> Job:
    """Submit a run that has the grades of the old one, and grades again what errored or is missing."""
    old = request.job
    request.check_unchanged("run of an eval", "failed")
    run = session.get(EvalRun, old.id)
    if run is None or evals.lock(session, run.eval_id, old.project_id) is None:
        raise InvalidRequest(f"Run '{old.id}' was deleted.", code="nothing_to_retry")
    payload, counts = Evaluation.model_validate(old.payload), outcomes(session, old)
    if payload.imported is not None:
        raise InvalidRequest(f"Run '{old.id}' was imported, and not graded here.", code="nothing_to_retry")
    if not old.total:
        raise InvalidRequest(f"No item of run '{old.id}' was graded: create another run.", code="nothing_to_retry")
    if counts.get(runs.PASSED, 0) + counts.get(runs.FAILED, 0) == old.total:
        raise InvalidRequest(f"No item of run '{old.id}' errored.", code="nothing_to_retry")
    limit = limit_of(session, request.config, old.project_id, "eval_runs")
    ledger.check_room(session, old.project_id, runs.NAME, limit)
    copied = {name: getattr(run, name) for name in ("eval_id", "project_id", "name", "data_source")}
    again = EvalRun(id=new_id(runs.PREFIX), bytes=0, created_at=now(), **copied)
    if run.metadata_ is not None:
        again.metadata_ = run.metadata_
    payload = payload.model_copy(update={"retried": old.id})
    return runs.submit(session, again, payload, actor=request.actor, **request.columns)


EVALUATION: Final = Kind(
    runs.NAME,
    "Evaluation run",
    runs.PREFIX,
    Evaluation,
    runs.EVENTS,
    resources=("evals",),
    permission="api.evals.write",
    links={"eval_id": itemgetter("eval_id")},
    run_queue=Queue.EVALUATE,
    window=None,
    retry=_retry,
    slot_weight=1.0,  # a process grades one shard at a time
    counted=False,
    has_lines=False,  # clients read them as output items
    stored_bytes={"eval_runs": select(EvalRun.project_id, func.sum(EvalRun.bytes)).group_by(EvalRun.project_id)},
    result=EvalRun.id,
    shows_segments=True,
)
SAMPLING: Final = Kind(
    runs.SAMPLING,
    "Samples of an evaluation",
    runs.SAMPLING_PREFIX,
    Sampling,
    {},
    permission="api.evals.write",
    window=None,
    counted=False,
    has_lines=False,
)
