"""Examine the files of a fine-tuning job without creating one: errors by line, tokens, steps, seconds and memory.

files ─▶ child: lines, tokens ─▶ plan ─▶ estimate by the newest job that trained the base so
                                           └─ none, `measure` ─▶ a job that trains three steps; then ask again
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from api.batches.schemas import BatchError, BatchErrors
from api.deps import Call, CallContext
from api.finetuning.queries import parse_training, parse_validation
from api.finetuning.schemas import FineTuningFields, HyperparametersObject
from api.http.bodies import resource
from api.http.space import check_not_full, count_if_due
from jobs.errors import InvalidRequest, Unavailable
from jobs.finetuning import estimates, examination, jobs, names, tuning_requests
from jobs.finetuning.estimates import Estimate
from jobs.finetuning.examination import BaseUnavailable, DatasetFindings, ExaminationFailed
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetunePlan
from jobs.fleet import workers
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.queues import Queue
from jobs.requests.endpoints import FINE_TUNING
from jobs.security.tables import Project
from jobs.usage.project_limits import limit_of

router = resource("Fine-tuning", area="fine_tuning")

_SECONDS = 120


class ValidateFineTuning(FineTuningFields):
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Which rows are held out.")
    measure: bool = Field(
        default=False,
        description="Where nothing can be estimated: create a job that trains three steps, and makes no model.",
    )


class TrainingEstimate(BaseModel):
    """The seconds of all steps, without evaluations and checkpoints, and the bytes that a step takes.

    They are those of the newest job that trained the base by the same method: by its last `measured_steps` steps, in
    batches of `batch_size`.
    """

    seconds: int
    memory_bytes: int
    measured_steps: int
    batch_size: int
    measured_at: int


class FineTuningValidation(BaseModel):
    """`errors` are those that the job would fail with. `tokens` are those of one epoch, `trained_tokens` of all.

    Counts are null where there are errors. A packed job takes fewer steps than `steps`. `estimate` is null where no job
    has trained the base so; then `measuring_job` is the job that `measure` created.
    """

    object: Literal["fine_tuning.validation"] = "fine_tuning.validation"
    valid: bool
    model: str
    errors: BatchErrors
    errors_truncated: bool
    warnings: list[str]
    examples: int | None = None
    validation_examples: int | None = None
    tokens: int | None = None
    trained_tokens: int | None = None
    longest_example: int | None = None
    steps: int | None = None
    hyperparameters: HyperparametersObject | None = None
    estimate: TrainingEstimate | None = None
    measuring_job: str | None = None


@router.post("/fine_tuning/jobs/validate")
def validate_fine_tuning(call: Call, body: ValidateFineTuning) -> FineTuningValidation:
    """Examine every line of the files as a job would, and say how many tokens and steps the job would train."""
    with call.db.read() as session:
        work, registry = call.work(body.model, FINE_TUNING), call.services.registry()
        base, parent = tuning_requests.resolve_base(session, registry, work, body.peft)
        tuning_requests.check_peft(session, body.peft)
        files = tuning_requests.find_files(session, call.project_id, _files_of(body), lock=False)
    training = parse_training(body)
    tuning_requests.check_training(registry, base, body.peft, training)
    asked = FineTuning(
        model=body.model,
        base=base,
        result="",
        seed=body.seed,
        parent=parent,
        peft=body.peft,
        method=body.method_type,
        hyperparameters=body.effective_hyperparameters(),
        training=training,
        validation=parse_validation(body),
        validation_file=body.validation_file,
        general_file=body.general_file,
    )
    roles = {"training": "training_file", "validation": "validation_file", "general": "general_file"}
    paths = {role: files[field].path for role, field in roles.items() if field in files}
    model = registry.trainable[base]
    question = examination.question(call.config, model, asked, paths, seconds=_SECONDS, store=False)
    findings = _examine(call, question)
    examination.check_steps(asked, findings)
    examination.warn_unserved(asked, findings, registry)
    if findings.errors:
        return _show_findings(asked, findings)
    plan = examination.plan_of("", asked, findings)
    with call.db.read() as session:
        estimate = estimates.estimate_from_history(session, asked, plan)
    shown = _show_findings(asked, findings).model_copy(
        update=_counts(plan, findings) | {"estimate": _show_estimate(estimate)}
    )
    if estimate is None and body.measure:
        shown.measuring_job = _measure(call, body, asked)
        if shown.measuring_job is None:
            shown.warnings.append("No worker that trains is running: seconds and memory were not measured.")
    return shown


def _files_of(body: FineTuningFields) -> dict[str, str]:
    """Return the ids of the files that a body names, by field."""
    fields = ("training_file", "validation_file", "general_file")
    return {field: file_id for field in fields if (file_id := getattr(body, field))}


def _examine(call: CallContext, question: examination.ExaminationTask) -> DatasetFindings:
    """Raise ProjectBusy, Unavailable when the base is away, and InvalidRequest when it was too much for one child."""
    try:
        with call.services.computations.slot(call.project_id):
            return examination.examine(question)
    except BaseUnavailable as error:
        raise Unavailable("The base's tokenizer is not on this machine.", code="model_unavailable") from error
    except ExaminationFailed as error:
        raise InvalidRequest(error.message, param="training_file", code=error.code) from error


def _measure(call: CallContext, body: ValidateFineTuning, asked: FineTuning) -> str | None:
    """Create a job that trains a few steps of what was asked for; return its id, None while no worker trains."""
    count_if_due(call)
    with call.db.write() as session:
        if not any(Queue.FINETUNE in worker.queues for worker in workers.present(session)):
            return None
        check_not_full(session, call)
        limit = limit_of(session, call.config, call.project_id, "finetune_jobs")
        ledger.check_room(session, call.project_id, jobs.NAME, limit)
        files = tuning_requests.find_files(session, call.project_id, _files_of(body))
        job_id, project = new_id(names.JOB_PREFIX), session.get_one(Project, call.project_id).name
        result = names.model_name(asked.base, project, None, job_id)
        jobs.submit(
            session,
            asked.model_copy(update={"result": result, "dry_run": True}),
            job_id=job_id,
            project_id=call.project_id,
            training_file=files["training_file"],
            actor=call.actor,
            request_id=call.request_id,
        )
    return job_id


def _show_findings(asked: FineTuning, findings: DatasetFindings) -> FineTuningValidation:
    return FineTuningValidation(
        valid=not findings.errors,
        model=asked.model,
        errors=BatchErrors(data=[BatchError(**error) for error in findings.errors]),
        errors_truncated=findings.truncated,
        warnings=findings.warnings,
    )


def _counts(plan: FinetunePlan, findings: DatasetFindings) -> dict[str, Any]:
    numbers = ("n_epochs", "batch_size", "learning_rate_multiplier")
    return {
        "examples": plan.rows,
        "validation_examples": plan.validation_rows,
        "tokens": plan.tokens,
        "trained_tokens": plan.tokens * plan.n_epochs,
        "longest_example": findings.longest,
        "steps": plan.steps,
        "hyperparameters": HyperparametersObject(**{name: getattr(plan, name) for name in numbers}),
    }


def _show_estimate(estimate: Estimate | None) -> TrainingEstimate | None:
    if estimate is None:
        return None
    return TrainingEstimate(
        seconds=round(estimate.seconds),
        memory_bytes=estimate.memory_bytes,
        measured_steps=estimate.steps,
        batch_size=estimate.batch_size,
        measured_at=int(estimate.measured_at),
    )
