"""Store the answers to interactive clients: a row, and an object in storage with the request and the answer.

    store    object ─▶ row      a crash between the steps leaves an object that retention removes
    delete   row ─▶ object      likewise

Each answer is stored once, though it may be requested twice:

    key       leased while the model works ─▶ stored with the answer's row
    stream    sent by several connections, one after another or at once ─▶ the first that reaches the end stores it

All connections of a stream have the same answer to store. Two at the same moment write the same object, and the row of
one of them stays.

A background response is also a job, whose input is the object: the worker writes the answer into it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel
from sqlalchemy import Select, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api import shares
from api.deps import CallContext
from api.errors import clip
from api.http.idempotency import Lease, Make, Once
from api.http.paging import cursor_details, deletion_details, find, match_metadata
from api.http.space import check_project, remove_orphan, reserve_or_remove
from api.shares import run_in_threadpool
from jobs.clock import now
from jobs.errors import Conflict, DatabaseBusy, InvalidRequest, NotFound
from jobs.inference import responses
from jobs.inference.stored import StoredAnswer, decode, encode
from jobs.inference.tables import StoredCompletion, StoredResponse
from jobs.ledger import ledger
from jobs.ledger.states import TERMINAL, JobState
from jobs.ledger.tables import Audit, Job
from jobs.platform.storage import remove_objects
from jobs.requests.endpoints import RESPONSES


class AnswerReference(BaseModel):
    """The value that an Idempotency-Key stores: the id of the answer, which is stored once."""

    id: str


_MAX_NAME = 255
_TRIES = 3  # of a page; each found an object deleted at that moment
Answered = dict[str, Any]
#: Runs a function that makes a row, in one transaction.
Run = Callable[[Make], object]


@dataclass(frozen=True, slots=True)
class StoredAnswers:
    """The stored answers of one kind. `path` names the object of an id, `action` begins the actions in the audit."""

    table: type[StoredCompletion] | type[StoredResponse]
    url: str
    path: Callable[[str], str]
    action: str
    noun: str
    param: str

    def prepare(
        self, call: CallContext, stored_answer: StoredAnswer, created_at: float | None = None
    ) -> Callable[[Session], AnswerReference]:
        """Write the object; return the function that inserts its row, made at `created_at` or now. Raises ProjectFull.

        The answer expires the same time after this call, whenever it was made.
        """
        called, columns = now(), _selection_columns(stored_answer)
        created = called if created_at is None else created_at
        answer_id, data = stored_answer.id, encode(self.url, stored_answer)
        path, size = self.path(answer_id), len(data)
        check_project(call, size)
        call.storage.put(path, data)

        def insert(session: Session) -> AnswerReference:
            reserve_or_remove(session, call, size, path, self.table.id == answer_id)
            row = self.table(id=answer_id, project_id=call.project_id, bytes=size, created_at=created, **columns)
            row.expires_at = called + call.config.response_seconds
            session.add(row)
            call.record(session, self._create_action, answer_id)
            return AnswerReference(id=answer_id)

        return insert

    def once(self, call: CallContext, answer_id: str, keep: Callable[[Run], None]) -> None:
        """Have `keep` write the object of an answer and insert its row, unless another connection did.

        The audit log knows for ever that an answer was stored, so an answer that was deleted meanwhile is not stored
        again.
        """

        def run(work: Make) -> None:
            try:
                with call.db.write() as session:
                    if not self._was_stored(session, answer_id):
                        work(session)
                        return
                    deleted = session.get(self.table, answer_id) is None
                if deleted:  # its object was just written again
                    remove_objects(call.storage, [self.path(answer_id)])
            except IntegrityError:  # another connection was faster
                with call.db.read() as session:
                    if not self._was_stored(session, answer_id):
                        raise

        with call.db.read() as session:
            if self._was_stored(session, answer_id):  # its object must not be written again
                return
        keep(run)

    def remove_orphan(self, call: CallContext, answer_id: str) -> None:
        """Remove the object of an answer that has no row."""
        with call.db.read() as session:
            remove_orphan(session, call, self.path(answer_id), self.table.id == answer_id)

    def of(self, call: CallContext) -> Select[Any]:
        """Select the project's rows that have not expired."""
        return select(self.table).where(self.table.project_id == call.project_id, self.table.expires_at > now())

    def row(self, session: Session, call: CallContext, answer_id: str, *, lock: bool = False) -> Any:
        """Return one row. Raises NotFound."""
        statement = self.of(call).where(self.table.id == answer_id)
        row = session.scalar(statement.with_for_update() if lock else statement)
        if row is None:
            raise self.not_found(answer_id)
        return row

    def page(
        self,
        call: CallContext,
        request: Request,
        model: str | None,
        read: Callable[[Any], StoredAnswer | None],
        cursor: Mapping[str, Any],
    ) -> tuple[list[StoredAnswer], bool]:
        """Return a page of answers, and whether there are more. `metadata[key]=value` in the query selects.

        `read` loads the answer of a row, None where it was deleted a moment ago. `model` is as it was asked for, or
        as the answer names it. `cursor` holds `after`, `limit` and `order`.
        """
        answers = self.of(call)
        metadata, query = self.table.metadata_, request.query_params.multi_items()
        statement = match_metadata(answers, metadata, query, sqlite=call.db.sqlite)
        if model is not None:
            statement = statement.where(or_(self.table.requested_model == model, self.table.model == model))
        for _ in range(_TRIES):
            with call.db.read() as session:
                deletions = deletion_details(call, f"{self.action}.delete")
                rows, more = find(session, statement, self.table, among=answers, deletions=deletions, **cursor)
            answered = [answer for row in rows if (answer := read(row)) is not None]
            if len(answered) == len(rows):
                break
        return answered, more

    def not_found(self, answer_id: str) -> NotFound:
        return NotFound(f"{self.noun} with id '{clip(answer_id)}' not found.", param=self.param)

    @property
    def _create_action(self) -> str:
        return f"{self.action}.create"

    def _was_stored(self, session: Session, answer_id: str) -> bool:
        audited = Audit.target == answer_id, Audit.action == self._create_action
        return session.scalar(select(Audit.id).where(*audited).limit(1)) is not None


async def answer_once(
    once: Once,
    fields: Mapping[str, Any],
    answer: Callable[[], Awaitable[Answered | Response]],
    keep: Callable[[Answered, Run], None],
    load: Callable[[str], Answered],
    show: Callable[[Answered], Answered] = dict,
) -> Response:
    """Return the result of `answer` after `keep` has stored it, or its refusal; for a known key, the result of `load`.

    The client is sent `show` of either.

    Raises InFlight, IdempotencyMismatch, and the errors of the arguments.
    """
    async with once.hold_lease() as lease, _renew_lease(lease):
        if lease.stored is not None:
            replayed = await run_in_threadpool(once.replay, fields)
            assert replayed is not None, "the key was kept a moment ago"
            return json_response(show(await run_in_threadpool(load, answer_id_of(replayed))), replayed=True)
        answered = await answer()
        if isinstance(answered, Response):
            await run_in_threadpool(lease.drop)
            return answered
        await run_in_threadpool(keep, answered, partial(lease.complete, fields))
        return json_response(show(answered))


def answer_id_of(stored: Response) -> str:
    """Return the id in the value that a key stores."""
    return str(msgspec.json.decode(bytes(stored.body))["id"])


def json_response(body: Mapping[str, Any], *, replayed: bool = False) -> Response:
    headers = {"Idempotency-Replayed": "true"} if replayed else None
    return Response(msgspec.json.encode(body), media_type="application/json", headers=headers)


@asynccontextmanager
async def _renew_lease(lease: Lease) -> AsyncIterator[None]:
    """Renew the lease of the key while the model works."""

    async def heartbeat() -> None:
        while True:
            await asyncio.sleep(lease.once.config.heartbeat_seconds)
            with suppress(DatabaseBusy):  # the next heartbeat may come in time
                await lease.heartbeat()

    renewing = asyncio.create_task(heartbeat())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)  # `complete` notices a lost key


def _selection_columns(stored_answer: StoredAnswer) -> dict[str, Any]:
    """Return the columns by which a stored answer is selected."""
    requested, answered = (stored_answer.request.get("model"), stored_answer.response.get("model"))
    name = requested if isinstance(requested, str) else ""
    columns = {
        "requested_model": model_name(name),
        "model": model_name(answered if isinstance(answered, str) else name),
    }
    metadata = stored_answer.response.get("metadata")
    return columns | ({"metadata_": metadata} if metadata else {})  # JSON null is not NULL


def model_name(model: str) -> str:
    """Return a model's name without characters that a column cannot hold: an engine may call a model anything."""
    return model.replace("\0", "")[:_MAX_NAME]


STORED_RESPONSES = StoredAnswers(StoredResponse, RESPONSES, responses.path, "response", "Response", "response_id")

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


def prepare_background(
    call: CallContext, stored_answer: StoredAnswer, key: str | None, *, stream: bool, model: str | None
) -> Callable[[Session], AnswerReference]:
    """Write the object; return the function that inserts its row and its job.

    With `stream` its events are published. `model` is the model that will answer; None where planning finds it.
    """
    insert = STORED_RESPONSES.prepare(call, stored_answer)

    def submit(session: Session) -> AnswerReference:
        reference = insert(session)
        job = Job(
            id=reference.id,
            project_id=call.project_id,
            kind=responses.KIND,
            endpoint=RESPONSES,
            model=model,
            payload={"stream": True} if stream else {},
            input_path=responses.path(reference.id),
            **responses.RESPONSE.times(now()),
            idempotency_key=key,
            request_id=call.request_id,
        )
        ledger.submit(session, job, actor=call.actor)
        return reference

    return submit


def load_response(call: CallContext, response_id: str, *, reserve: bool = False) -> StoredAnswer:
    """Load a response in its current state; with `reserve`, reserve its bytes for the request.

    Raises NotFound, and with `reserve` ProjectBusy.
    """
    with call.db.read() as session:
        row = STORED_RESPONSES.row(session, call, response_id)
        job = _job(session, row)
    with call.storage.reader(row.path) as handle:
        raw = handle.read()
    if reserve:
        shares.reserve(len(raw))
    return _add_state(decode(raw), job)


def read_response(call: CallContext, row: StoredResponse) -> StoredAnswer | None:
    """Return the response of a row in its current state, None where it was deleted a moment ago."""
    with call.db.read() as session:
        job = _job(session, row)
    try:
        with call.storage.reader(row.path) as handle:
            return _add_state(decode(handle.read()), job)
    except NotFound:
        return None


def response_status(session: Session, call: CallContext, response_id: str) -> str | None:
    """Return the status in SQL, None where only the object has it. Raises NotFound."""
    job = _job(session, STORED_RESPONSES.row(session, call, response_id))
    return _STATUS.get(job.state) if job is not None else None


def cancel_response(call: CallContext, response_id: str) -> StoredAnswer:
    """Cancel a background response; an ended one stays as it is. Raises NotFound, InvalidRequest."""
    with call.db.write() as session:
        job = _job(session, STORED_RESPONSES.row(session, call, response_id))
        if job is None:
            raise InvalidRequest("Cannot cancel a synchronous response.", param="response_id", code="invalid_state")
        if _stop(session, call, job):
            call.record(session, "response.cancel", job.id)
    return load_response(call, response_id)


def delete_response(call: CallContext, response_id: str) -> None:
    """Delete a stored response, and stop its job if that is live.

    Raises: NotFound.
    """
    with call.db.write() as session:
        row = STORED_RESPONSES.row(session, call, response_id, lock=True)
        job = _job(session, row)
        if job is not None:
            _stop(session, call, job)
        session.delete(row)
        call.record(session, "response.delete", row.id, cursor_details(row))
        paths = [row.path, *([f"jobs/{row.id}"] if job is not None and job.state in TERMINAL else [])]
    remove_objects(call.storage, paths)


def _job(session: Session, row: StoredResponse) -> Job | None:
    return session.get(Job, row.id)


def _stop(session: Session, call: CallContext, job: Job) -> bool:
    """Stop the job; return False when it has ended or is being stopped already."""
    before = job.state
    try:
        return ledger.cancel(session, job.id, actor=call.actor).state != before
    except Conflict:
        return False


def _add_state(stored_answer: StoredAnswer, job: Job | None) -> StoredAnswer:
    """Return the response with the job's state. A succeeded job has its answer in the object, written before."""
    status = _STATUS.get(job.state) if job is not None else None
    if job is None or status is None:
        return stored_answer
    response = stored_answer.response
    error = None
    if status == "failed":
        first_error = (job.errors or [{}])[0]
        error = _EXPIRED if job.state == JobState.EXPIRED else response.get("error") or responses.error_of(first_error)
    state: dict[str, Any] = {"status": status, "output": [], "usage": None, "incomplete_details": None, "error": error}
    return replace(stored_answer, response={**response, **state})
