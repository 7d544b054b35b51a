"""Examine the files of a fine-tuning job without creating one: errors by line, tokens and steps."""

import threading
from typing import Literal

from pydantic import BaseModel, Field

from api.batches.schemas import BatchError, BatchErrors
from api.deps import Call
from api.finetuning.queries import checked_validation, resolve_base, training_files
from api.finetuning.schemas import FineTuningFields, HyperparametersObject
from api.http.bodies import resource
from jobs.errors import InvalidRequest, Unavailable
from jobs.finetuning import examination
from jobs.finetuning.examination import BaseUnavailable, ExaminationFailed, Findings
from jobs.finetuning.payload import FineTuning, Training

router = resource("Fine-tuning")

_SECONDS = 120
#: Children at once: each takes a core.
_AT_ONCE = threading.BoundedSemaphore(2)


class ValidateFineTuning(FineTuningFields):
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Which rows are held out.")


class FineTuningValidation(BaseModel):
    """`errors` are those that the job would fail with. `tokens` are those of one epoch, `trained_tokens` of all.

    Counts are null where there are errors. A packed job takes fewer steps than `steps`.
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


@router.post("/fine_tuning/jobs/validate")
def validate_fine_tuning(call: Call, body: ValidateFineTuning) -> FineTuningValidation:
    """Examine every line of the files as a job would, and say how many tokens and steps the job would train."""
    with call.db.read() as session:
        base, _ = resolve_base(session, call, body.model)
        files = training_files(session, call, body, lock=False)
    asked = FineTuning(
        model=body.model,
        base=base,
        result="",
        seed=body.seed,
        method=body.method_type,
        hyperparameters=body.chosen(),
        training=Training.model_validate(body.training.model_dump()),
        validation=checked_validation(body),
        validation_file=body.validation_file,
    )
    roles = {"training": "training_file", "validation": "validation_file"}
    paths = {role: files[field].path for role, field in roles.items() if field in files}
    model = call.services.registry().models[base]
    question = examination.question(call.config, model, asked, paths, seconds=_SECONDS, store=False)
    findings = _examined(question)
    return _shown(asked, findings)


def _examined(question: examination.Question) -> Findings:
    """Raise Unavailable when too many run or the base is away, InvalidRequest when it was too much for one child."""
    if not _AT_ONCE.acquire(blocking=False):
        raise Unavailable("Other files are being examined. Try again in a moment.", code="validation_busy")
    try:
        return examination.examine(question)
    except BaseUnavailable as error:
        raise Unavailable("The base's tokenizer is not on this machine.", code="model_unavailable") from error
    except ExaminationFailed as error:
        message = f"The files could not be read within {_SECONDS} seconds."
        raise InvalidRequest(message, param="training_file", code=error.code) from error
    finally:
        _AT_ONCE.release()


def _shown(asked: FineTuning, findings: Findings) -> FineTuningValidation:
    shown = FineTuningValidation(
        valid=not findings.errors,
        model=asked.model,
        errors=BatchErrors(data=[BatchError(**error) for error in findings.errors]),
        errors_truncated=findings.truncated,
        warnings=findings.warnings,
    )
    if findings.errors:
        return shown
    plan = examination.plan_of("", asked, findings)
    numbers = ("n_epochs", "batch_size", "learning_rate_multiplier")
    counts = {
        "examples": plan.rows,
        "validation_examples": plan.validation_rows,
        "tokens": plan.tokens,
        "trained_tokens": plan.tokens * plan.n_epochs,
        "longest_example": findings.longest,
        "steps": plan.steps,
        "hyperparameters": HyperparametersObject(**{name: getattr(plan, name) for name in numbers}),
    }
    return shown.model_copy(update=counts)
