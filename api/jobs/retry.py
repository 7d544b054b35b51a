"""Retry a job: create a new job over the same input, for some or all of its lines. The old job does not change."""

from sqlalchemy.orm import Session

from api.deps import CallContext
from api.http.space import check_not_full
from jobs.batches import batches
from jobs.errors import Conflict, InvalidRequest, MissingPermission
from jobs.ledger import kinds
from jobs.ledger.kinds import Retry
from jobs.ledger.progress import outcomes
from jobs.ledger.states import TERMINAL, JobState
from jobs.ledger.tables import Job


def submit_retry(session: Session, call: CallContext, request: Retry) -> Job:
    """Submit the retry of an ended job, in the caller's transaction.

    Its key needs the permission that makes jobs of this kind, too.

    Raises: MissingPermission, Conflict, InvalidRequest, and what the retry of the kind raises.
    """
    kind = kinds.of(request.job.kind)
    if kind.permission not in call.caller.permissions:
        raise MissingPermission(kind.permission)
    if kind.retry is None:
        raise InvalidRequest(f"A {request.job.kind} is not retried: ask for another.", code="nothing_to_retry")
    _check(session, request)
    check_not_full(session, call)
    return kind.retry(session, request)


def _check(session: Session, request: Retry) -> None:
    old, which = request.job, request.which
    if old.state not in TERMINAL:
        raise Conflict(f"Job '{old.id}' has not ended: it is {old.state}.", code="invalid_state")
    if which == batches.FAILED and old.state == JobState.SUCCEEDED and not old.failed:
        raise InvalidRequest(f"Every line of job '{old.id}' has succeeded.", code="nothing_to_retry")
    if which == batches.LENGTH and not outcomes(session, old).get(batches.LENGTH):
        message = f"No answer of job '{old.id}' was cut off at the token limit."
        raise InvalidRequest(message, param="which", code="nothing_to_retry")
