"""The end of a fine-tuning job: its result files, and the model under the name that clients ask for.

    FINISHING  without errors   steps ─▶ result files; a checkpoint ─▶ the model; optimisers removed ─▶ succeeded
               with errors      steps ─▶ result files ─▶ failed
    CANCELLING                  steps ─▶ result files ─▶ cancelled
    a dry run                   none of these: its steps are what is measured

The result files are a CSV, the curve as SVG and TensorBoard's event file. A job that failed or was cancelled keeps its
last optimisers, so that a retry goes on from there.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.files.tables import File
from jobs.finetuning import datasets, training_events
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetunePlan, FinetuneStep
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.platform.storage import Storage
from jobs.registry import models
from jobs.registry.manifests import MANIFEST, Manifest, decode_manifest
from workers.finetuning import checkpoints, curve, tensorboard
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle

PURPOSE: Final = "fine-tune-results"
#: OpenAI's, to the letter.
HEADER: Final = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
#: The column of `finetune_plan` for TensorBoard's file; the other files have columns of `job`.
_EVENTS: Final = "tensorboard_file_id"
_VALID_LOSS: Final = "full_valid_loss"
_PAGE: Final = 1000
_POINTS: Final = 500  # of a curve


def finish(context: Context, claim: JobClaim, _hold: ClaimHandle) -> None:
    """End a claimed job. Raises ClaimLost, NotFound, StorageFull, StorageUnavailable."""
    job = claim.job
    succeeds = job.state == JobState.FINISHING and not job.errors
    dry_run = FineTuning.model_validate(job.payload).dry_run
    if succeeds:
        locations = context.db.retrying(lambda session: checkpoints.keep_models(session, job.id))
        checkpoints.remove_optimizer(context.storage, locations)
    files = {} if dry_run else _files(context, job)
    values = {name: file.id for name, file in files.items() if name != _EVENTS}

    def close(session: Session) -> None:
        ledger.close(session, claim, values, list(files.values()), errors=() if succeeds else job.errors or ())
        _note_end(session, job, files.get(_EVENTS))
        if succeeds and not dry_run:
            _add_model(session, context.storage, job)

    context.db.retrying(close)


def register(
    session: Session, job: Job, name: str, *, step: int | None, location: str, sha256: str, manifest: Manifest
) -> None:
    """Add the model of a stored checkpoint under a name that clients ask for. `step` is None for the job's result."""
    payload = FineTuning.model_validate(job.payload)
    data = {role: row.sha256 for role, row in datasets.data_of_job(session, job.id).items()}
    models.register(
        session,
        name=name,
        project_id=job.project_id,
        base=payload.base,
        job_id=job.id,
        method=str(manifest.run["peft"]),
        location=location,
        sha256=sha256,
        manifest={
            "bytes": sum(file.bytes for file in manifest.model_files.values()),
            "files": {name: file.sha256 for name, file in manifest.model_files.items()},
            "base": payload.base,
            "parent": payload.parent,
            "data": data,
            "datasets": payload.datasets,
            "seed": payload.seed,
            "hyperparameters": payload.hyperparameters.model_dump(mode="json"),
            "training": payload.training.model_dump(mode="json"),
            "run": manifest.run,
        },
        checkpoint_step=step,
    )


def _add_model(session: Session, storage: Storage, job: Job) -> None:
    payload, stored = FineTuning.model_validate(job.payload), checkpoints.of_job(session, job.id)
    chosen = stored[0]
    evaluated = [row for row in stored if _VALID_LOSS in row.metrics]
    if payload.loads_best and evaluated:
        chosen = min(evaluated, key=lambda row: row.metrics[_VALID_LOSS])
        loss = chosen.metrics[_VALID_LOSS]
        message = (
            f"The result is the checkpoint of step {chosen.step}, which has the lowest validation loss: {loss:.4g}."
        )
        training_events.record(session, job.id, message)
    path = f"{chosen.location}/{MANIFEST}"
    manifest = decode_manifest(storage.piece(path, 0, storage.size(path)))
    register(session, job, payload.result, step=None, location=chosen.location, sha256=chosen.sha256, manifest=manifest)


def _note_end(session: Session, job: Job, events: File | None) -> None:
    plan = session.get(FinetunePlan, job.id)
    epochs = session.scalar(select(func.max(FinetuneStep.epoch)).where(FinetuneStep.job_id == job.id))
    if plan is not None:
        plan.trained_tokens = round(plan.tokens * (epochs or 0.0))
        plan.estimated_finish = None
        plan.tensorboard_file_id = events.id if events else None


def _files(context: Context, job: Job) -> Mapping[str, File]:
    """Store the result files of a job, by the column that names each; none where nothing was trained."""
    stored = {}
    for column, name, pieces in _contents(context, job):
        file_id, size = new_id("file-"), 0
        with context.storage.writer(f"files/{file_id}") as target:
            for piece in pieces:
                target.write(piece)
                size += len(piece)
        stored[column] = File(
            id=file_id,
            project_id=job.project_id,
            purpose=PURPOSE,
            filename=name,
            bytes=size,
            path=f"files/{file_id}",
            created_at=now(),
        )
    return stored


def _contents(context: Context, job: Job) -> Iterator[tuple[str, str, Iterable[bytes]]]:
    text, losses = io.StringIO(), curve.Curve(_POINTS)
    text.write(HEADER + "\n")
    for row in steps_after(context, job.id, 0):
        cells = (row.step, row.train_loss, row.train_accuracy, row.valid_loss, row.valid_accuracy)
        text.write(",".join("" if cell is None else str(cell) for cell in cells) + "\n")
        losses.add(row.step, row.train_loss, row.valid_loss)
    if losses.steps:
        yield "output_file_id", "step_metrics.csv", [text.getvalue().encode()]
        yield "error_file_id", "loss.svg", [losses.draw().encode()]
        events = tensorboard.encode(steps_after(context, job.id, 0), job.created_at)
        yield _EVENTS, tensorboard.file_name(job.id, job.created_at), events


def steps_after(context: Context, job_id: str, after: int) -> Iterator[FinetuneStep]:
    """Return the steps of a job after one of them, in pages."""
    while True:
        page = select(FinetuneStep).where(FinetuneStep.job_id == job_id, FinetuneStep.step > after)
        with context.db.read() as session:
            rows = session.scalars(page.order_by(FinetuneStep.step).limit(_PAGE)).all()
        yield from rows
        if len(rows) < _PAGE:
            return
        after = rows[-1].step
