"""Retry a job: create a new job over the same input, for some or all of its lines. The old job does not change.

Planning the new job finds the lines that failed, are missing or were cut off.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.batches.schemas import seconds
from api.deps import CallContext
from api.files.queries import visible
from api.http.space import check_not_full
from api.retrieval.queries import get_store
from jobs.batches import batches, lines
from jobs.batches.batches import Batch, Which
from jobs.clock import now
from jobs.errors import Conflict, InvalidRequest
from jobs.evals import evals, runs
from jobs.evals.runs import Evaluation
from jobs.evals.tables import EvalRun
from jobs.files.tables import File
from jobs.finetuning import jobs as tuning
from jobs.finetuning import names
from jobs.finetuning.payload import FineTuning
from jobs.ids import new_id
from jobs.ledger import kinds, ledger
from jobs.ledger.progress import outcomes
from jobs.ledger.states import TERMINAL, JobState
from jobs.ledger.tables import Job
from jobs.retrieval import attachments, ingestions, reindexing
from jobs.retrieval.attachments import Attachment
from jobs.retrieval.indexes import index_of
from jobs.retrieval.ingestions import FILE_BATCH, SINGLE
from jobs.retrieval.tables import VectorStore, VectorStoreFile
from jobs.security.tables import Project

#: Bytes of a job's overrides, those of the jobs that it retries included: they are read with each shard.
MAX_OVERRIDES_BYTES = 65_536
_COPIED = ("kind", "endpoint", "input_file_id", "webhook_url", "webhook_secret")


@dataclass(frozen=True, slots=True)
class Changes:
    """The lines of the new job, and what it changes. `key` is its idempotency key."""

    key: str | None
    which: Which
    overrides: dict[str, Any]
    window: str | None
    priority: int | None


def again(session: Session, call: CallContext, old: Job, changes: Changes) -> Job:
    """Submit the retry of an ended job, in the caller's transaction."""
    _check(session, old, changes.which)
    check_not_full(session, call)
    return AGAIN[old.kind](session, call, old, changes)


def _lines_again(session: Session, call: CallContext, old: Job, changes: Changes) -> Job:
    """Submit a batch over the same input, for the requested lines."""
    _check_known(session, old, changes.which)
    created_at, window = now(), changes.window or old.window
    payload = Batch.model_validate(old.payload)
    overrides = {**payload.overrides, **changes.overrides}
    _check_overrides(overrides, old.endpoint)
    job = Job(
        id=new_id(batches.PREFIX),
        project_id=call.project_id,
        input_path=_input(session, call, old).path,
        payload=payload.model_copy(update={"overrides": overrides, "which": changes.which}).stored(),
        priority=old.priority if changes.priority is None else changes.priority,
        window=window,
        created_at=created_at,
        deadline=created_at + seconds(window, call.config),
        idempotency_key=changes.key,
        retry_of=old.id,
        request_id=call.request_id,
        **{name: getattr(old, name) for name in _COPIED},
    )
    if old.metadata_ is not None:
        job.metadata_ = old.metadata_
    return ledger.submit(session, job, actor=call.actor)


def _check(session: Session, old: Job, which: Which) -> None:
    if not kinds.of(old.kind).retryable:
        raise InvalidRequest(f"A {old.kind} is not retried: ask for another.", code="nothing_to_retry")
    if old.state not in TERMINAL:
        raise Conflict(f"Job '{old.id}' has not ended: it is {old.state}.", code="invalid_state")
    if which == batches.FAILED and old.state == JobState.SUCCEEDED and not old.failed:
        raise InvalidRequest(f"Every line of job '{old.id}' has succeeded.", code="nothing_to_retry")
    if which == batches.LENGTH and not outcomes(session, old).get(batches.LENGTH):
        message = f"No answer of job '{old.id}' was cut off at the token limit."
        raise InvalidRequest(message, param="which", code="nothing_to_retry")


def _check_known(session: Session, old: Job, which: Which) -> None:
    first, which = batches.last_run(session, old, which)
    if first is not None and not batches.results_known(session, first, which):
        raise InvalidRequest(batches.results_expired(first), code=batches.RESULTS_EXPIRED)


def _check_overrides(overrides: dict[str, Any], endpoint: str) -> None:
    """Check the overrides as they would be checked in each line."""
    if len(msgspec.json.encode(overrides)) > MAX_OVERRIDES_BYTES:
        message = f"The overrides, with those of the jobs before, have more than {MAX_OVERRIDES_BYTES} bytes."
        raise InvalidRequest(message, param="overrides", code="overrides_too_large")
    model, stream = overrides.get("model", "its own"), overrides.get("stream")
    if not isinstance(model, str) or not model:
        raise _invalid("model", "Invalid type for 'overrides.model': expected a string.", "invalid_type")
    if not isinstance(stream, bool | None):
        raise _invalid("stream", "Invalid type for 'overrides.stream': expected a boolean.", "invalid_type")
    if stream:
        raise _invalid("stream", "Batches do not stream.", "streaming_unsupported")
    required, missing = lines.REQUIRED[endpoint]
    if required in overrides and overrides[required] is None:
        raise _invalid(required, missing, "invalid_request")


def _invalid(name: str, message: str, code: str) -> InvalidRequest:
    return InvalidRequest(message, param=f"overrides.{name}", code=code)


def _files_again(session: Session, call: CallContext, old: Job, changes: Changes) -> Job:
    """Submit the files of an ingestion that failed or were not reached, unless they were attached anew since."""
    if changes.which != batches.FAILED:
        message = f"The files of job '{old.id}' that failed are retried: 'which' must be '{batches.FAILED}'."
        raise InvalidRequest(message, param="which", code="invalid_value")
    store = get_store(session, call, old.payload["store_id"], alive=True, lock=True)
    beside = bool(old.payload.get("beside"))
    index = session.get(VectorStore, index_of(old.payload) if beside else store.current_id)
    undone = VectorStoreFile.status.in_((attachments.FAILED, attachments.CANCELLED))
    remaining = select(VectorStoreFile).join(File, File.id == VectorStoreFile.id).where(File.deleted_at.is_(None))
    remaining = remaining.where(
        VectorStoreFile.store_id == (index.id if index else ""), VectorStoreFile.job_id == old.id, undone
    )
    remaining = remaining.order_by(VectorStoreFile.id)
    remaining = remaining.with_for_update(read=True, of=File)  # exclude a file that is deleted at this moment
    files = [Attachment(row.id, row.filename, row.chunking, row.attributes) for row in session.scalars(remaining)]
    if index is None or not files:
        raise InvalidRequest(f"No file of job '{old.id}' is left to be brought in.", code="nothing_to_retry")
    prefix = FILE_BATCH if old.id.startswith(FILE_BATCH) else SINGLE
    columns = {"idempotency_key": changes.key, "request_id": call.request_id, "retry_of": old.id}
    columns |= {"webhook_url": old.webhook_url, "webhook_secret": old.webhook_secret}
    job = ingestions.into(session, index, files, actor=call.actor, prefix=prefix, beside=beside, **columns)
    if source_id := old.payload.get("source_id"):  # it may have ended before the store's other indexes got these files
        reindexing.alongside(session, job, source_id, actor=call.actor, request_id=call.request_id)
    return job


def _training_again(session: Session, call: CallContext, old: Job, changes: Changes) -> Job:
    """Submit a fine-tuning job again; its training goes on from the last checkpoint of the old one."""
    _check_unchanged(changes, "fine-tuning job", (batches.FAILED, batches.ALL))
    ledger.check_room(session, call.project_id, tuning.NAME, call.config.project_finetune_jobs)
    payload = FineTuning.model_validate(old.payload)
    job_id, project = new_id(names.JOB_PREFIX), session.get_one(Project, call.project_id).name
    result = names.model_name(payload.base, project, payload.suffix, job_id)
    return tuning.submit(
        session,
        payload.model_copy(update={"result": result, "resumed_from": old.id}),
        job_id=job_id,
        project_id=call.project_id,
        training_file=_input(session, call, old),
        actor=call.actor,
        metadata=old.metadata_,
        idempotency_key=changes.key,
        request_id=call.request_id,
        retry_of=old.id,
    )


def _evaluation_again(session: Session, call: CallContext, old: Job, changes: Changes) -> Job:
    """Submit a run that has the grades of the old one, and grades again what errored or is missing."""
    _check_unchanged(changes, "run of an eval", (batches.FAILED,))
    run = session.get(EvalRun, old.id)
    if run is None or evals.lock(session, run.eval_id, call.project_id) is None:
        raise InvalidRequest(f"Run '{old.id}' was deleted.", code="nothing_to_retry")
    payload, counts = Evaluation.model_validate(old.payload), outcomes(session, old)
    if payload.imported is not None:
        raise InvalidRequest(f"Run '{old.id}' was imported, and not graded here.", code="nothing_to_retry")
    if not old.total:
        raise InvalidRequest(f"No item of run '{old.id}' was graded: create another run.", code="nothing_to_retry")
    if counts.get(runs.PASSED, 0) + counts.get(runs.FAILED, 0) == old.total:
        raise InvalidRequest(f"No item of run '{old.id}' errored.", code="nothing_to_retry")
    ledger.check_room(session, call.project_id, runs.NAME, call.config.project_eval_runs)
    copied = {name: getattr(run, name) for name in ("eval_id", "project_id", "name", "data_source")}
    again = EvalRun(id=new_id(runs.PREFIX), bytes=0, created_at=now(), **copied)
    if run.metadata_ is not None:
        again.metadata_ = run.metadata_
    columns: dict[str, Any] = {"idempotency_key": changes.key, "request_id": call.request_id, "retry_of": old.id}
    return runs.submit(session, again, payload.model_copy(update={"retried": old.id}), actor=call.actor, **columns)


def _check_unchanged(changes: Changes, noun: str, allowed: tuple[Which, ...]) -> None:
    """Check the retry of a job that is retried as it was asked for. Raises InvalidRequest."""
    if changes.which not in allowed or changes.overrides:
        param = "overrides" if changes.overrides else "which"
        message = f"A {noun} is retried as it was asked for: 'overrides' and 'which' do not apply."
        raise InvalidRequest(message, param=param, code="invalid_value")


def _input(session: Session, call: CallContext, old: Job) -> File:
    file = session.scalar(visible(call).where(File.id == old.input_file_id).with_for_update(read=True))
    if file is None:
        message = f"The input file '{old.input_file_id}' of job '{old.id}' is gone."
        raise InvalidRequest(message, param="input_file_id", code="input_file_gone")
    return file


#: The retry of each retryable kind.
AGAIN: Final[dict[str, Callable[[Session, CallContext, Job, Changes], Job]]] = {
    **dict.fromkeys(batches.NAMES, _lines_again),
    ingestions.NAME: _files_again,
    tuning.NAME: _training_again,
    runs.NAME: _evaluation_again,
}
