"""Planning of a fine-tuning job: examine its files in a child process, keep snapshots, and let it run or reject it.

    claim ─▶ files ─▶ child: every line, tokens, split ─▶ snapshots stored ─▶ planned: data, plan, one shard
                                                └─ errors ─▶ rejected, with lines and params

One process of a host examines files at a time: they may be large, and the other processes plan and finish other jobs.
A planner that dies leaves snapshots that nothing names, which are removed as orphans.
"""

from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs.batches.lines import Bad
from jobs.db.engine import WRITE_ROWS
from jobs.files.tables import File
from jobs.finetuning import datasets, examination, training_events
from jobs.finetuning.examination import DatasetFindings
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetunePlan
from jobs.fleet import access
from jobs.fleet.models_file import ModelConfig, ModelsFileError, Registry
from jobs.ledger import ledger, shards
from jobs.ledger.ledger import JobClaim
from jobs.ledger.tables import Job, Shard
from jobs.platform.children import ChildStopped
from jobs.platform.locks import hold_exclusively
from jobs.queues import Queue
from jobs.requests.endpoints import FINE_TUNING
from workers.runtime.attempts import Abandoned
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle

_SECONDS: Final = 3600


def plan(context: Context, claim: JobClaim, handle: ClaimHandle) -> None:
    """Examine the data of a claimed job, and let the job run or reject it. Raises Abandoned, ClaimLost."""
    if context.low_on_disk():
        raise Abandoned(5.0, "disk")
    asked = FineTuning.model_validate(claim.job.payload)
    registry = _registry(context)
    base = registry.trainable.get(asked.base)
    if base is None:
        message = f"The model '{asked.base}' is no longer one that this deployment can train."
        _reject(context, claim, [Bad("model_not_available", message, None, "model").as_dict()])
        return
    try:
        with context.db.read() as session:
            work = access.work_of(claim.job, asked.parent or base.name, FINE_TUNING)
            access.check(session, registry, work)
    except access.AccessDenied as denial:
        _reject(context, claim, [Bad(denial.code, str(denial), None, "model").as_dict()])
        return
    findings = _examine(context, claim, asked, base, handle)
    examination.check_steps(asked, findings)
    examination.warn_unserved(asked, findings, registry)
    if findings.errors:
        _reject(context, claim, findings.errors)
    else:
        context.db.retrying(lambda session: _write_plan(session, claim, asked, findings), context.stop)


def _registry(context: Context) -> Registry:
    try:
        return context.models.now()
    except ModelsFileError:
        raise Abandoned(5.0, "model") from None


def _examine(
    context: Context, claim: JobClaim, asked: FineTuning, base: ModelConfig, handle: ClaimHandle
) -> DatasetFindings:
    with context.db.read() as session:
        paths = _paths(session, claim.job)
    question = examination.question(context.config, base, asked, paths, seconds=_SECONDS, store=True)
    try:
        with hold_exclusively(context.config.data_dir / "run" / "examination") as alone:
            if not alone:
                raise Abandoned(context.timings.examination_retry)
            return examination.examine(question, lambda: handle.ended)
    except ChildStopped:
        raise Abandoned from None
    except examination.BaseUnavailable:
        raise Abandoned(30.0, "model") from None
    except examination.ExaminationFailed as error:
        return DatasetFindings(errors=[Bad(str(error.code), error.message, None, "training_file").as_dict()])


def _paths(session: Session, job: Job) -> dict[str, str]:
    """Return where the files of a job lie in storage, by role."""
    files = {row.role: row.file_id for row in datasets.data_of_job(session, job.id).values()}
    located = select(File.id, File.path).where(File.id.in_(files.values()))
    paths = {file_id: path for file_id, path in session.execute(located)}  # noqa: C416 (rows are not pairs)
    return {role: paths.get(file_id, "") for role, file_id in files.items()}


def _write_plan(session: Session, claim: JobClaim, asked: FineTuning, findings: DatasetFindings) -> None:
    """Write what was found, cut the one shard that fills a slot, and let the job run. Raises ClaimLost."""
    job = claim.job
    ledger.assert_claim(session, claim)
    files = datasets.data_of_job(session, job.id)
    validated = files.get(datasets.VALIDATION, files[datasets.TRAINING]).file_id
    parts = {
        datasets.TRAINING: (files[datasets.TRAINING].file_id, findings.training),
        datasets.VALIDATION: (validated, findings.validation),
        datasets.GENERAL: (asked.general_file or "", findings.general),
    }
    for role, (file_id, part) in parts.items():
        if part is not None:
            datasets.add(session, job.id, role, file_id, sha256=part.sha256, size=part.bytes, rows=part.rows)
    session.execute(delete(FinetunePlan).where(FinetunePlan.job_id == job.id))
    plan = examination.plan_of(job.id, asked, findings)
    session.add(plan)
    for warning in findings.warnings:
        training_events.record(session, job.id, warning, level="warn")
    message = f"Files validated: {plan.rows} examples, {plan.tokens} tokens, {plan.steps} steps. The job is queued."
    training_events.record(session, job.id, message)
    while shards.uncut(session, claim, WRITE_ROWS):  # of an earlier planner
        pass
    shard = Shard(job_id=job.id, n=0, first_line=0, lines=1, offset=0, length=0)
    shards.cut(session, claim, Queue.FINETUNE, [shard])
    ledger.begin_running(session, claim, total=1, model=None, queue=Queue.FINETUNE)


def _reject(context: Context, claim: JobClaim, errors: list[dict[str, object]]) -> None:
    context.db.retrying(lambda session: ledger.reject(session, claim, errors), context.stop)
