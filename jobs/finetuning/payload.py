"""The payload of a fine-tuning job: what was asked for, checked. `jobs.finetuning.tables` has what came of it."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.finetuning.examples import Method
from jobs.ledger.kinds import Payload

MAX_RANK: Final = 512  # of an adapter

Auto = Literal["auto"]
Peft = Literal["lora", "full", "qlora", "auto"]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Epochs = Annotated[int, Field(ge=1, le=50)] | Auto
BatchSize = Annotated[int, Field(ge=1, le=256)] | Auto
Multiplier = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | Auto
Beta = Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] | Auto
_Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hyperparameters(_Options):
    """OpenAI's hyperparameters. `beta` is for the method `dpo` alone."""

    n_epochs: Epochs = "auto"
    batch_size: BatchSize = "auto"
    learning_rate_multiplier: Multiplier = "auto"
    beta: Beta = "auto"


class Training(_Options):
    """Options of training beyond OpenAI's. None: the default of the trainer, which the guide names.

    `eval_steps` is the number of steps between two evaluations. `max_sequence_length` counts tokens; rows that are
    longer are errors, or cut there with `truncate`. `chat_template` (Jinja) takes the place of the base's.
    `learning_rate` takes the place of the default of the method times the multiplier. `load_best`: the result is the
    checkpoint with the lowest validation loss, not the last one; None: where `early_stopping.patience` is given.
    """

    rank: int = Field(default=16, ge=1, le=MAX_RANK)
    alpha: float | None = Field(default=None, gt=0, le=4096, allow_inf_nan=False)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False)
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: list[Annotated[str, Field(min_length=1, max_length=128)]] | None = Field(
        default=None, min_length=1, max_length=64
    )
    learning_rate: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    scheduler: Scheduler = "linear"
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False)
    weight_decay: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=1024)
    max_sequence_length: int | None = Field(default=None, ge=8, le=1 << 20)
    truncate: bool = False
    chat_template: str | None = Field(default=None, min_length=1, max_length=1 << 16)
    packing: bool = False
    load_best: bool | None = None
    eval_steps: int | None = Field(default=None, ge=1, le=1 << 20)


class Validation(_Options):
    """The origin of the validation rows: a file, a seeded fraction of the training file, or its latest rows.

    `temporal` orders rows by their `metadata.time` and takes the last `fraction`.
    """

    type: Literal["file", "holdout", "temporal"]
    fraction: _Fraction = 0.1


class EarlyStopping(_Options):
    """The conditions on which training stops before the last step.

    A job that learns no more (`patience`, `min_delta`) succeeds with its best checkpoint. A job that reaches one of the
    other limits fails; its checkpoints stay. Times are counted over all attempts, without pauses.
    """

    patience: int | None = Field(default=None, ge=1, le=10_000)
    min_delta: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_seconds: int | None = Field(default=None, ge=1)
    max_device_seconds: int | None = Field(default=None, ge=1)
    max_memory_bytes: int | None = Field(default=None, ge=1)


_Word = Annotated[str, Field(min_length=1, max_length=128)]


class Wandb(_Options):
    """The run in Weights & Biases that the steps of a job go to. `entity` is a user or a team there."""

    project: _Word
    name: _Word | None = None
    entity: _Word | None = None
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]] | None = Field(default=None, max_length=50)


class FineTuning(Payload):
    """Train `base`, or go on from the tuned model `parent` of that base; the result is named `result`.

    `model` is what the client asked for: the name or alias of a base, or of a tuned model. The files that the job
    reads are rows of `finetune_data`. `datasets` has the references that they were named by, by the field of the
    request.
    """

    model: str
    base: str
    result: str
    seed: int
    parent: str | None = None
    suffix: str | None = None
    method: Method = "supervised"
    hyperparameters: Hyperparameters = Hyperparameters()
    peft: Peft = "lora"
    training: Training = Training()
    validation: Validation | None = None
    early_stopping: EarlyStopping = EarlyStopping()
    validation_file: str | None = None
    wandb: Wandb | None = None
    general_file: str | None = None
    datasets: dict[str, str] = Field(default_factory=dict)
    dry_run: bool = False  # a few steps are trained to measure them, and no model is made
    resumed_from: str | None = None  # a retry goes on from the last checkpoint of this job

    @model_validator(mode="after")
    def _validation_has_a_file(self) -> "FineTuning":
        wants_file = self.validation is not None and self.validation.type == "file"
        if self.validation is not None and wants_file != (self.validation_file is not None):
            raise ValueError("`validation.type` is 'file' exactly when there is a `validation_file`")
        return self

    @property
    def loads_best(self) -> bool:
        """Return whether the result is the checkpoint with the lowest validation loss."""
        asked = self.training.load_best
        return self.early_stopping.patience is not None if asked is None else asked

    def to_payload(self) -> dict[str, object]:
        """Return the payload without defaults: a worker of an earlier version reads what it knows."""
        return self.model_dump(mode="json", exclude_defaults=True)
