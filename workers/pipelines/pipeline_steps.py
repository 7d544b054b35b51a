"""Jobs of kind `pipeline` and `pipeline_step`: they are planned when what they wait for has completed, and then end.

step     claim ─▶ its job made, the step waits for it          again claimed, once that has completed ─▶ closed
            └─ its request is not valid any more ─▶ rejected, and so is what waits for the step
pipeline claim, once all steps have completed ─▶ closed
"""

from functools import partial

from jobs.errors import InvalidRequest, PermissionDenied, TooManyLiveJobs
from jobs.fleet.models_file import ModelsFileError
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import JobState
from jobs.pipelines import pipelines
from jobs.pipelines.pipelines import Pipeline
from jobs.queues import Queue
from workers.runtime.attempts import Abandoned
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle


def plan_step(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    """Release a claimed step, or reject it where its job cannot be made.

    Raises: Abandoned, ClaimLost, StorageFull.
    """
    try:
        registry = context.models.now()
    except ModelsFileError:
        raise Abandoned(5.0, "model") from None
    release = partial(pipelines.release, claim=claim, config=context.config, registry=registry)
    try:
        context.db.retrying(release, context.stop)
    except TooManyLiveJobs:
        raise Abandoned(context.timings.storage_retry) from None
    except (InvalidRequest, PermissionDenied) as error:
        report = {"code": error.code or "invalid_request", "message": error.message, "line": None, "param": error.param}
        context.db.retrying(partial(ledger.reject, claim=claim, errors=[report]), context.stop)


def plan_pipeline(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    """Let a claimed pipeline end: all of its steps have completed. Raises ClaimLost."""
    total = len(Pipeline.model_validate(claim.job.payload).steps)
    begin = partial(ledger.begin_running, claim=claim, total=total, model=None, queue=Queue.PLAN)
    context.db.retrying(begin, context.stop)


def finish(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    """Close a claimed step or pipeline. Raises ClaimLost."""
    completed = claim.job.total if claim.job.state == JobState.FINISHING else 0
    values = {"completed": completed, "failed": 0}
    context.db.retrying(partial(ledger.close, claim=claim, values=values, files=[]))
