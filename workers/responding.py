"""Finishing a response that was asked for in the background: its one line's answer becomes the response.

    claim ─▶ the record ─┬─ an answer ─▶ the kept object, durable ─▶ succeeded
                         ├─ a refusal, or none after all tries ─▶ failed, with the engine's words
                         └─ not run (cancelled, expired) ─▶ the state that says so

The object is written before the job's state, so that whoever sees the end finds it there. Deleted meanwhile, it is
written all the same, has no row, and is removed by retention.
"""

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import select

from jobs import ledger, responses
from jobs.errors import NotFound
from jobs.ledger import JobClaim
from jobs.models import TOKENS, Segment
from jobs.responses import Kept
from jobs.states import JobState
from workers import records
from workers.context import Context

log = logging.getLogger(__name__)
_LOST = {"code": "server_error", "message": "The response was deleted before it was answered.", "param": None}


def respond(context: Context, claim: JobClaim) -> None:
    """Bring the claimed job to its end. Raises Fenced, StorageFull, StorageAway."""
    with context.db.read() as session:
        segment = session.scalars(select(Segment).where(Segment.job_id == claim.job.id)).first()
    if segment is None:  # cancelled or expired
        _close(context, claim, {})
        return
    with context.storage.reader(segment.path) as handle:
        _, good, line = records.parse(handle.read(segment.length).rstrip(b"\n"))
    said = msgspec.json.decode(line)
    outcomes = segment.outcomes or {}
    values = {name: getattr(segment, name) for name in TOKENS} | {"completed": int(good), "failed": int(not good)}
    if claim.job.state != JobState.FINISHING:  # stopped when it was nearly done: that it was, its state says
        _close(context, claim, values, outcomes)
    elif good and (kept := _object(context, claim.job.id)) is not None:
        answer = responses.ours(said["response"]["body"], kept.response)
        context.storage.put(responses.path(claim.job.id), responses.encode(Kept(kept.question, answer)))
        incomplete = answer.get("status") == "incomplete"
        _close(context, claim, values, outcomes, "response.incomplete" if incomplete else None)
    else:
        _fail(context, claim, values, outcomes, _LOST if good else _error(said))


def _object(context: Context, response_id: str) -> Kept | None:
    try:
        with context.storage.reader(responses.path(response_id)) as handle:
            return responses.decode(handle.read())
    except NotFound:
        return None


def _error(said: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's refusal, or why there was no answer."""
    error = said["error"] or said["response"]["body"].get("error") or {}
    return {"code": error.get("code"), "message": str(error.get("message")), "param": error.get("param")}


def _close(
    context: Context,
    claim: JobClaim,
    values: Mapping[str, Any],
    outcomes: Mapping[str, int] = {},
    event: str | None = None,
) -> None:
    context.db.retrying(lambda session: ledger.close(session, claim, values, [], outcomes, event=event))
    log.info("response_closed", extra={"job_id": claim.job.id})


def _fail(
    context: Context, claim: JobClaim, values: Mapping[str, Any], outcomes: Mapping[str, int], error: Mapping[str, Any]
) -> None:
    errors = [{**error, "line": None}]
    context.db.retrying(lambda session: ledger.fail(session, claim, values, errors, outcomes))
    log.info("response_failed", extra={"job_id": claim.job.id, "code": error.get("code")})
