"""Finishing a response that was asked for in the background: its one line's answer becomes the response.

    claim ─▶ the record ─┬─ an answer ─▶ the kept object, durable ─▶ succeeded
                         ├─ a refusal, or none after all tries ─▶ the engine's words in the object ─▶ failed
                         └─ not run (cancelled, expired) ─▶ the state that says so

The object is written before the job's state, so that whoever sees the end finds it there. What was deleted meanwhile
ends without a word, and nothing stays of it: who deletes it later than that finds the job at its end and does the same.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec
from sqlalchemy import select, update

from jobs.errors import NotFound, StorageAway, StorageFull
from jobs.inference import responses
from jobs.inference.stored import Kept, decode, encode
from jobs.inference.tables import KeptResponse
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import JobState
from jobs.ledger.tables import TOKENS, Segment
from jobs.requests.endpoints import RESPONSES
from workers.runtime import outcomes, output_lines
from workers.runtime.context import Context

log = logging.getLogger(__name__)


def respond(context: Context, claim: JobClaim) -> None:
    """Bring the claimed job to its end. Raises Fenced, StorageFull, StorageAway."""
    with context.db.read() as session:
        segment = session.scalars(select(Segment).where(Segment.job_id == claim.job.id)).first()
        wanted = session.get(KeptResponse, claim.job.id) is not None
    if segment is None:  # cancelled or expired
        _close(context, claim, {})
        return
    good = any(segment.good)
    counts = segment.outcomes or {}
    values = {name: getattr(segment, name) for name in TOKENS} | {"completed": int(good), "failed": int(not good)}
    if claim.job.state != JobState.FINISHING or not wanted:  # stopped when it was nearly done: that its state says
        _close(context, claim, values, counts)
        _remove(context, f"jobs/{claim.job.id}")  # nobody will be shown it
        return
    with context.storage.reader(segment.path) as handle:
        _, _, line = output_lines.parse(handle.read(segment.length).rstrip(b"\n"))
    said = msgspec.json.decode(line)
    kept, ended = _object(context, claim.job.id), int(segment.created_at)
    answer: Any = said["response"]["body"] if good else None
    if kept is None:
        _close(context, claim, values, counts)
    elif not responses.sound(answer):
        _fail(context, claim, values, counts, kept, said)
    else:
        _write(context, Kept(kept.question, responses.ours(answer, kept.response, kept.question, ended)))
        incomplete = answer.get("status") == "incomplete"
        _close(context, claim, values, counts, "response.incomplete" if incomplete else None)
    with context.db.read() as session:
        wanted = session.get(KeptResponse, claim.job.id) is not None
    if not wanted:
        _remove(context, responses.path(claim.job.id), f"jobs/{claim.job.id}")


def _object(context: Context, response_id: str) -> Kept | None:
    """None when it was deleted."""
    try:
        with context.storage.reader(responses.path(response_id)) as handle:
            return decode(handle.read())
    except NotFound:
        return None


def _remove(context: Context, *paths: str) -> None:
    """What the storage does not let go of now, retention removes."""
    for path in paths:
        with suppress(StorageAway, StorageFull):
            context.storage.delete(path)


def _write(context: Context, kept: Kept) -> None:
    """Write the object of a response, and its size into the row."""
    response_id, data = str(kept.response["id"]), encode(RESPONSES, kept)
    context.storage.put(responses.path(response_id), data)
    sized = update(KeptResponse).where(KeptResponse.id == response_id).values(bytes=len(data))
    context.db.retrying(lambda session: session.execute(sized))


def _close(
    context: Context,
    claim: JobClaim,
    values: Mapping[str, Any],
    counts: Mapping[str, int] = {},
    event: str | None = None,
) -> None:
    context.db.retrying(lambda session: ledger.close(session, claim, values, [], counts, event=event))
    log.info("response_closed", extra={"job_id": claim.job.id})


def _fail(
    context: Context,
    claim: JobClaim,
    values: Mapping[str, Any],
    counts: Mapping[str, int],
    kept: Kept,
    said: Mapping[str, Any],
) -> None:
    """The engine's words may quote the prompt: they go where that lies, and its code alone into the ledger."""
    error = _error(said)
    code = outcomes.word(error.get("code")) or "engine_error"
    _write(context, Kept(kept.question, {**kept.response, "error": responses.error_of(error)}))
    errors = [{"code": code, "message": "The engine gave no response.", "param": None, "line": None}]
    context.db.retrying(lambda session: ledger.close(session, claim, values, [], counts, errors=errors))
    log.info("response_failed", extra={"job_id": claim.job.id, "code": code})


def _error(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """The engine's refusal, or why there was no answer."""
    body = (said["response"] or {}).get("body")
    error = said["error"] or (body.get("error") if isinstance(body, dict) else None)
    return error if isinstance(error, dict) else {"message": "The engine's answer is no response."}
