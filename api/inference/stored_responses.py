"""Load, cancel and delete stored responses (`store`), and queue those that are answered in the background.

queue    object ─▶ row and job      a crash between leaves an object that retention removes; the worker writes the
                                    answer into the object
"""

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.orm import Session

from api import shares
from api.deps import CallContext
from api.inference.stored_answers import Reference, StoredAnswers
from jobs.clock import now
from jobs.errors import Conflict, InvalidRequest
from jobs.inference import responses
from jobs.inference.stored import Kept, decode
from jobs.inference.tables import KeptResponse
from jobs.ledger import ledger
from jobs.ledger.states import TERMINAL, JobState
from jobs.ledger.tables import Job
from jobs.platform.storage import let_go
from jobs.requests.endpoints import RESPONSES

STORED = StoredAnswers(KeptResponse, RESPONSES, responses.path, "response", "Response", "response_id")

_STATUS: Mapping[str, str] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.FINISHING: "in_progress",
    JobState.EXPIRING: "in_progress",
    JobState.CANCELLING: "cancelled",
    JobState.CANCELLED: "cancelled",
    JobState.FAILED: "failed",
    JobState.EXPIRED: "failed",
}
_EXPIRED = {"code": "server_error", "message": "The response was not answered within its time."}


def prepare_job(call: CallContext, kept: Kept, key: str | None, *, stream: bool) -> Callable[[Session], Reference]:
    """Write the object; return what inserts its row and the job that answers it. `stream`: its events are published."""
    insert = STORED.prepare(call, kept)

    def submit(session: Session) -> Reference:
        reference = insert(session)
        job = Job(
            id=reference.id,
            project_id=call.project_id,
            kind=responses.KIND,
            endpoint=RESPONSES,
            payload={"stream": True} if stream else {},
            input_path=responses.path(reference.id),
            **responses.RESPONSE.times(now()),
            idempotency_key=key,
            request_id=call.request_id,
        )
        ledger.submit(session, job, actor=call.actor)
        return reference

    return submit


def load(call: CallContext, response_id: str, *, reserve: bool = False) -> Kept:
    """As it stands now; with `reserve` the request has reserved its bytes. Raises NotFound, and ProjectBusy then."""
    with call.db.read() as session:
        row = STORED.row(session, call, response_id)
        job = _job(session, row)
    with call.storage.reader(row.path) as handle:
        raw = handle.read()
    if reserve:
        shares.reserve(len(raw))
    kept = decode(raw)
    return Kept(kept.question, _as_it_stands(kept.response, job)) if job else kept


def status(session: Session, call: CallContext, response_id: str) -> str | None:
    """As SQL has it; None where the object alone says it. Raises NotFound."""
    job = _job(session, STORED.row(session, call, response_id))
    return _STATUS.get(job.state) if job is not None else None


def cancel(call: CallContext, response_id: str) -> Kept:
    """Stop one in the background; one that has ended stays as it is. Raises NotFound, InvalidRequest."""
    with call.db.write() as session:
        job = _job(session, STORED.row(session, call, response_id))
        if job is None:
            raise InvalidRequest("Cannot cancel a synchronous response.", param="response_id", code="invalid_state")
        if _stop(session, call, job):
            call.record(session, "response.cancel", job.id)
    return load(call, response_id)


def forget(call: CallContext, response_id: str) -> None:
    """Raises NotFound."""
    with call.db.write() as session:
        row = STORED.row(session, call, response_id, lock=True)
        job = _job(session, row)
        if job is not None:
            _stop(session, call, job)
        session.delete(row)
        call.record(session, "response.delete", row.id)
        paths = [row.path, *([f"jobs/{row.id}"] if job is not None and job.state in TERMINAL else [])]
    let_go(call.storage, paths)


def _job(session: Session, row: KeptResponse) -> Job | None:
    return session.get(Job, row.id)


def _stop(session: Session, call: CallContext, job: Job) -> bool:
    """False when it ends, or is being stopped, already."""
    before = job.state
    try:
        return ledger.cancel(session, job.id, actor=call.actor).state != before
    except Conflict:
        return False


def _as_it_stands(response: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """The object is the answer once the job has succeeded; it was written before."""
    status = _STATUS.get(job.state)
    if status is None:
        return dict(response)
    error = None
    if status == "failed":
        told = (job.errors or [{}])[0]
        error = _EXPIRED if job.state == JobState.EXPIRED else response.get("error") or responses.error_of(told)
    return {**response, "status": status, "output": [], "usage": None, "incomplete_details": None, "error": error}
