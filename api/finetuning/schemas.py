"""The requests of fine-tuning, and jobs, events, checkpoints and permissions as OpenAI shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from api.http.bodies import Body, Many
from api.http.fields import AfterJobs, Dependent, Metadata, dependence, unix_seconds
from jobs.datasets.references import MAX_LENGTH
from jobs.finetuning import examples, names, payload, training_curve
from jobs.finetuning.payload import FineTuning, Hyperparameters
from jobs.finetuning.tables import FinetuneCheckpoint, FinetuneEvent, FinetunePlan
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.registry.tables import CheckpointPermission

FileId = Annotated[
    str, Field(min_length=1, max_length=MAX_LENGTH, description="A file, or `dataset:NAME@VERSION/SPLIT`.")
]
ProjectId = Annotated[str, Field(max_length=64, pattern="^proj_[A-Za-z0-9]+$")]

# ── requests ──


class SupervisedHyperparameters(Body):
    n_epochs: payload.Epochs = "auto"
    batch_size: payload.BatchSize = "auto"
    learning_rate_multiplier: payload.Multiplier = "auto"


class DpoHyperparameters(SupervisedHyperparameters):
    beta: payload.Beta = "auto"


class Supervised(Body):
    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()


class Dpo(Body):
    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class MethodFields(Body):
    """The method of training, with its hyperparameters. `reinforcement` is not supported."""

    type: examples.Method
    supervised: Supervised | None = None
    dpo: Dpo | None = None


class TrainingFields(Body, payload.Training):
    """Options of training beyond OpenAI's hyperparameters."""


class ValidationFields(Body, payload.Validation):
    """The origin of the validation rows."""


class EarlyStoppingFields(Body, payload.EarlyStopping):
    """The conditions on which training stops before the last step."""


class WandbFields(Body, payload.Wandb):
    """A run in Weights & Biases."""


class Integration(Body):
    """The service that the steps of a job go to: Weights & Biases, the only one that OpenAI has."""

    type: Literal["wandb"]
    wandb: WandbFields


class FineTuningFields(Body):
    """OpenAI's fields, and ours (through the SDK's `extra_body`): from `peft` on."""

    model: str = Field(min_length=1, max_length=255, description="A base of this deployment, or a tuned model.")
    training_file: FileId
    validation_file: FileId | None = None
    hyperparameters: SupervisedHyperparameters | None = Field(
        default=None, description="Deprecated by OpenAI: `method` has its own."
    )
    method: MethodFields | None = None
    peft: payload.Peft = "lora"
    training: TrainingFields = TrainingFields()
    validation: ValidationFields | None = None
    early_stopping: EarlyStoppingFields = EarlyStoppingFields()
    general_file: FileId | None = Field(
        default=None, description="Rows of messages that forgetting is measured with, instead of docstrings."
    )

    @property
    def method_type(self) -> examples.Method:
        """Return the method that was asked for."""
        return self.method.type if self.method else "supervised"

    def effective_hyperparameters(self) -> Hyperparameters:
        """Return the hyperparameters of the method; the deprecated field counts where the method has none."""
        method = self.method
        given = (method.dpo if method.type == "dpo" else method.supervised) if method else None
        hyperparameters = given.hyperparameters if given else self.hyperparameters
        return Hyperparameters.model_validate(hyperparameters.model_dump() if hyperparameters else {})


class CreateFineTuningJob(FineTuningFields):
    suffix: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="A part of the model's name: there letters are small, and what is neither letter nor digit is '-'.",
    )
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    integrations: Annotated[Many[Integration], Field(max_length=1)] | None = Field(
        default=None, description="Where the steps are shown besides, if the deployment has the service."
    )
    metadata: Metadata | None = None
    after: AfterJobs | None = None


class CreatePermissions(Body):
    project_ids: Annotated[Many[ProjectId], Field(min_length=1, max_length=100)]


# ── objects ──

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]


class FineTuningError(BaseModel):
    code: str
    message: str
    param: str | None


class HyperparametersObject(BaseModel):
    """Numbers once the job is planned; until then what was asked for."""

    n_epochs: payload.Epochs
    batch_size: payload.BatchSize
    learning_rate_multiplier: payload.Multiplier


class DpoHyperparametersObject(HyperparametersObject):
    beta: payload.Beta


class SupervisedObject(BaseModel):
    hyperparameters: HyperparametersObject


class DpoObject(BaseModel):
    hyperparameters: DpoHyperparametersObject


class MethodObject(BaseModel):
    type: examples.Method
    supervised: SupervisedObject | None = Field(default=None, exclude_if=lambda value: value is None)
    dpo: DpoObject | None = Field(default=None, exclude_if=lambda value: value is None)


class IntegrationObject(BaseModel):
    type: Literal["wandb"] = "wandb"
    wandb: payload.Wandb


class FineTuningJob(Dependent):
    """A fine-tuning job. `datasets` has the splits of datasets that its files are, by field; other jobs omit it."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: FineTuningError | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: HyperparametersObject
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: Status
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    estimated_finish: int | None
    integrations: list[IntegrationObject] | None
    metadata: dict[str, str] | None
    method: MethodObject
    user_provided_suffix: str | None
    peft: payload.Peft
    training: payload.Training
    validation: payload.Validation | None
    early_stopping: payload.EarlyStopping
    general_file: str | None
    datasets: dict[str, str] = Field(default={}, exclude_if=lambda datasets: not datasets)
    dry_run: bool


class FineTuningEvent(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class CheckpointMetrics(BaseModel):
    """OpenAI's metrics, and ours: the mean loss on general text, on the checkpoint after the last step."""

    step: int
    train_loss: float | None
    train_mean_token_accuracy: float | None
    valid_loss: float | None
    valid_mean_token_accuracy: float | None
    full_valid_loss: float | None
    full_valid_mean_token_accuracy: float | None
    general_nll_before: float | None
    general_nll_after: float | None


class Checkpoint(BaseModel):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics


class TrainingPoint(BaseModel):
    """Means over the steps of a job up to `step`, behind the point before.

    Null is what none of these steps measured.
    """

    step: int
    train_loss: float
    train_mean_token_accuracy: float | None
    valid_loss: float | None
    valid_mean_token_accuracy: float | None
    learning_rate: float
    tokens_per_second: float | None


class TrainingProgress(BaseModel):
    """The progress of a fine-tuning job: its plan, its cost so far, and its curve.

    `steps`, `examples` and `tokens` are null until the job is planned. `tokens` are those of one epoch. `seconds` is
    how long workers have held the training, `device_seconds` how long trainers have run; both count all attempts.
    """

    object: Literal["fine_tuning.job.progress"] = "fine_tuning.job.progress"
    trained_steps: int
    steps: int | None
    examples: int | None
    validation_examples: int | None
    tokens: int | None
    seconds: int
    device_seconds: int
    data: list[TrainingPoint]


class Permission(BaseModel):
    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


class PermissionDeleted(BaseModel):
    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: bool = True


# ── rows as objects ──


@dataclass(frozen=True, slots=True)
class JobDetails:
    """The values of a job's API object that the job's row does not hold."""

    organization_id: str
    plan: FinetunePlan | None
    result: str | None  # the name of the model
    begun: bool  # a worker has claimed its training
    paused: bool
    after: list[str]


def show_job(job: Job, standing: JobDetails) -> FineTuningJob:
    asked = FineTuning.model_validate(job.payload)
    ended = job.state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
    plan = standing.plan
    chosen = _hyperparameters(asked, plan)
    method: dict[str, Any] = {"type": asked.method, asked.method: {"hyperparameters": chosen}}
    return FineTuningJob(
        id=job.id,
        created_at=int(job.created_at),
        error=_error(job),
        fine_tuned_model=standing.result if job.state == JobState.SUCCEEDED else None,
        finished_at=unix_seconds(job.completed_at or job.failed_at or job.cancelled_at),
        hyperparameters=HyperparametersObject.model_validate(chosen),
        model=asked.model,
        organization_id=standing.organization_id,
        result_files=_result_files(job, plan),
        seed=asked.seed,
        status=_status(job, standing),
        trained_tokens=plan.trained_tokens if plan and ended else None,
        training_file=job.input_file_id or "",
        validation_file=asked.validation_file,
        estimated_finish=unix_seconds(plan.estimated_finish) if plan and job.state == JobState.RUNNING else None,
        integrations=[IntegrationObject(wandb=asked.wandb)] if asked.wandb else None,
        metadata=job.metadata_,
        method=MethodObject.model_validate(method),
        user_provided_suffix=asked.suffix,
        peft=asked.peft,
        training=asked.training,
        validation=asked.validation,
        early_stopping=asked.early_stopping,
        general_file=asked.general_file,
        datasets=asked.datasets,
        dry_run=asked.dry_run,
        **(dependence(job, standing.after) or _waits(job)),
    )


def show_event(event: FinetuneEvent) -> FineTuningEvent:
    names_ = ("id", "level", "message", "type", "data")
    shown = {name: getattr(event, name) for name in names_}
    return FineTuningEvent(created_at=int(event.created_at), **shown)


def show_checkpoint(model: str, checkpoint: FinetuneCheckpoint) -> Checkpoint:
    """Show a checkpoint of the job that results in `model`."""
    metrics: Mapping[str, Any] = checkpoint.metrics
    shown = {name: metrics.get(name) for name in CheckpointMetrics.model_fields}
    return Checkpoint(
        id=checkpoint.id,
        created_at=int(checkpoint.created_at),
        fine_tuned_model_checkpoint=names.checkpoint_name(model, checkpoint.step),
        fine_tuning_job_id=checkpoint.job_id,
        step_number=checkpoint.step,
        metrics=CheckpointMetrics.model_validate(shown | {"step": checkpoint.step}),
    )


def show_progress(plan: FinetunePlan | None, curve: Sequence[training_curve.Point]) -> TrainingProgress:
    """Show the progress of a job by its plan, which is None until the job is planned."""
    return TrainingProgress(
        trained_steps=curve[-1].step if curve else 0,
        steps=plan and plan.steps,
        examples=plan and plan.rows,
        validation_examples=plan and plan.validation_rows,
        tokens=plan and plan.tokens,
        seconds=int(plan.seconds) if plan else 0,
        device_seconds=int(plan.device_seconds) if plan else 0,
        data=[
            TrainingPoint(
                step=point.step,
                train_loss=point.train_loss,
                train_mean_token_accuracy=point.train_accuracy,
                valid_loss=point.valid_loss,
                valid_mean_token_accuracy=point.valid_accuracy,
                learning_rate=point.learning_rate,
                tokens_per_second=point.tokens_per_second,
            )
            for point in curve
        ],
    )


def show_permission(row: CheckpointPermission) -> Permission:
    return Permission(id=row.id, created_at=int(row.created_at), project_id=row.project_id)


def _result_files(job: Job, plan: FinetunePlan | None) -> list[str]:
    """Return the files of the steps: as CSV, as a drawing, and for TensorBoard."""
    files = (job.output_file_id, job.error_file_id, plan.tensorboard_file_id if plan else None)
    return [file_id for file_id in files if file_id]


def _waits(job: Job) -> dict[str, Any]:
    return {"waiting_for": f"waiting_for_{job.waiting_for}"} if job.waiting_for else {}


def _hyperparameters(asked: FineTuning, plan: FinetunePlan | None) -> dict[str, Any]:
    chosen = asked.hyperparameters.model_dump()
    if asked.method != "dpo":
        del chosen["beta"]
    if plan is not None:
        planned = ("n_epochs", "batch_size", "learning_rate_multiplier")
        chosen |= {name: getattr(plan, name) for name in planned}
    return chosen


def _error(job: Job) -> FineTuningError | None:
    """Return the first error of a failed job. Its `param` is the file, where the error is about a line of one."""
    if not job.errors:
        return None
    first = job.errors[0]
    line = f"Line {first['line']}: " if first.get("line") else ""
    param = (first.get("param") or "").partition(".")[0] or None
    message = f"{line}{first.get('message') or 'The job failed.'}"
    return FineTuningError(code=first.get("code") or "server_error", message=message, param=param)


def _status(job: Job, standing: JobDetails) -> Status:
    """Return OpenAI's word, or `paused`. A job that is being cancelled is `cancelled`, as OpenAI's cancel answers."""
    ends: dict[str, Status] = {
        JobState.SUCCEEDED: "succeeded",
        JobState.FAILED: "failed",
        JobState.CANCELLING: "cancelled",
        JobState.CANCELLED: "cancelled",
    }
    if (end := ends.get(job.state)) is not None:
        return end
    if standing.paused:
        return "paused"
    if job.state == JobState.QUEUED:
        return "queued" if job.waiting_for == "job" else "validating_files"
    return "running" if standing.begun or job.state == JobState.FINISHING else "queued"
