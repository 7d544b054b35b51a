"""Jobs of kind `promotion`: planned when the runs of their gates have completed, then judged and ended.

claim ─▶ finishing ─▶ claim ─▶ a report for each gate, from its runs ─▶ the end, with the move of the target
"""

from functools import partial

from sqlalchemy.orm import Session

from jobs.evals import comparison_process
from jobs.evals.runs import Evaluation
from jobs.evals.tables import EvalRun
from jobs.fleet.models_file import ModelsFileError
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.progress import outcomes
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.platform.children import ChildFailed
from jobs.promotions import gates, promotions
from jobs.promotions.gates import Gate, GateReport, Minimum
from jobs.promotions.promotions import Promotion
from jobs.queues import Queue
from workers.batches.finishing import outputs_of
from workers.runtime.attempts import Abandoned
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle


def plan(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    """Let a claimed promotion be judged: the runs of its gates have completed. Raises ClaimLost."""
    total = len(Promotion.model_validate(claim.job.payload).gates)
    begin = partial(ledger.begin_running, claim=claim, total=total, model=None, queue=Queue.PLAN)
    context.db.retrying(begin, context.stop)


def finish(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    """Judge a claimed promotion by its gates and end it; close one that was cancelled or has expired.

    Raises: Abandoned, ClaimLost, NotFound.
    """
    if claim.job.state != JobState.FINISHING:
        values = {"completed": 0, "failed": 0}
        context.db.retrying(partial(ledger.close, claim=claim, values=values, files=[]))
        return
    try:
        registry = context.models.now()
    except ModelsFileError:
        raise Abandoned(5.0, "model") from None
    reports = [_judge(context, gate) for gate in Promotion.model_validate(claim.job.payload).gates]
    conclude = partial(promotions.conclude, claim=claim, registry=registry, reports=reports)
    context.db.retrying(conclude, context.stop)


def _judge(context: Context, gate: Gate) -> GateReport:
    """Return the report of a gate whose runs have completed. Raises NotFound, where a run is removed meanwhile."""
    run_ids = [gate.incumbent_run_id, gate.candidate_run_id] if gate.incumbent_run_id else [gate.candidate_run_id]
    with context.db.read() as session:
        for run_id in run_ids:
            if session.get(EvalRun, run_id) is None:
                return gates.inconclusive(f"the run '{run_id}' was deleted")
        payload = Evaluation.model_validate(session.get_one(Job, gate.candidate_run_id).payload)
        if isinstance(gate.rule, Minimum):
            return gates.judge_minimum(gate.rule, gate.criterion, _scores(session, gate, payload))
    try:
        compared = comparison_process.compare(*(outputs_of(context, run_id) for run_id in run_ids))
    except ChildFailed as failure:
        return gates.inconclusive(f"the runs could not be compared: {failure}")
    return gates.judge_comparison(gate.rule, gate.criterion, compared, payload.criteria)


def _scores(session: Session, gate: Gate, payload: Evaluation) -> gates.CriterionScores:
    run, job = session.get_one(EvalRun, gate.candidate_run_id), session.get_one(Job, gate.candidate_run_id)
    return gates.scores_of(payload, gate.criterion, outcomes(session, job), run.criteria or [])
