"""The examination of training and validation files, in a child process with bounded memory and processor time.

    Question ─stdin─▶ python -m workers.finetuning.examination ─stdout─▶ Findings

The child reads storage; a confined process below it loads the base's tokenizer and sees the rows. The planner and the
dry run ask the same question, so that both refuse the same files.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from jobs.errors import NightmillError
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetunePlan
from jobs.fleet.models_file import VLLM_OFF, ModelConfig, Registry
from jobs.platform import children
from jobs.platform.children import ChildFailed, ChildLimits
from jobs.settings import Settings

MODULE: Final = "workers.finetuning.examination"
#: Errors that a job or a dry run names, at most.
MAX_ERRORS: Final = 1000
MAX_EXAMPLES: Final = 1_000_000
#: Rows of a file that forgetting is measured with.
MAX_GENERAL: Final = 1000
#: Steps of a training, each of which has a row in the database.
MAX_STEPS: Final = 100_000
_MEMORY_BYTES: Final = 8 << 30
_DEFAULT_EPOCHS: Final = 3
#: `auto` takes batches of as many examples as there are groups of this size, sixteen at most.
_EXAMPLES_PER_BATCH_SIZE: Final = 50
_MAX_AUTO_BATCH: Final = 16


class ExaminationFailed(NightmillError):
    """The child process that reads training files ended without a result."""

    text = "The files could not be read within the time and memory that there is."
    code = "validation_gave_up"


class BaseUnavailable(NightmillError):
    """The tokenizer of the base cannot be loaded on this machine."""

    text = "The base's tokenizer is not on this machine."


@dataclass(frozen=True, slots=True)
class ExaminationTask:
    """The files and options of an examination.

    `split` is `holdout` or `temporal`; with `store` the snapshots are written.
    """

    storage: str
    data_dir: str
    model: dict[str, Any]
    training: str
    validation: str | None
    general: str | None
    method: str
    split: str | None
    fraction: float
    seed: int
    max_sequence_length: int | None
    cpu_seconds: int
    store: bool
    truncate: bool = False
    chat_template: str | None = None
    memory_bytes: int = _MEMORY_BYTES

    @property
    def limits(self) -> ChildLimits:
        """Return the limits of each process."""
        return ChildLimits(self.cpu_seconds, self.cpu_seconds, self.memory_bytes)


@dataclass(slots=True)
class Part:
    """The rows that a job reads in a role, and the SHA-256 of their snapshot."""

    sha256: str
    bytes: int
    rows: int


@dataclass(slots=True)
class DatasetFindings:
    """The result of an examination. `tokens` counts the tokens of the training rows, `longest` those of the longest.

    `unavailable` says why the base's tokenizer cannot be loaded, `gave_up` why the files could not be read.
    """

    errors: list[dict[str, Any]] = field(default_factory=list)
    truncated: bool = False
    warnings: list[str] = field(default_factory=list)
    training: Part | None = None
    validation: Part | None = None
    general: Part | None = None
    tokens: int = 0
    longest: int = 0
    unavailable: str | None = None
    gave_up: str | None = None


def question(
    config: Settings, model: ModelConfig, asked: FineTuning, paths: Mapping[str, str], *, seconds: int, store: bool
) -> ExaminationTask:
    """Return the question about the files of a job, whose `paths` in storage are given by role."""
    split = asked.validation if asked.validation and asked.validation.type != "file" else None
    return ExaminationTask(
        storage=config.storage,
        data_dir=str(config.data_dir.absolute()),
        model=model.model_dump(mode="json"),
        training=paths["training"],
        validation=paths.get("validation"),
        general=paths.get("general"),
        method=asked.method,
        split=split.type if split else None,
        fraction=split.fraction if split else 0.0,
        seed=asked.seed,
        max_sequence_length=asked.training.max_sequence_length,
        truncate=asked.training.truncate,
        chat_template=asked.training.chat_template,
        cpu_seconds=seconds,
        store=store,
    )


def examine(asked: ExaminationTask, stopped: Callable[[], bool] = lambda: False) -> DatasetFindings:
    """Run the child.

    Raises: ExaminationFailed, BaseUnavailable, and `children.Stopped` when `stopped` returns True meanwhile.
    """
    given = json.dumps(asdict(asked)).encode()
    try:
        return decode(children.run(MODULE, [given], asked.limits, settings=True, stopped=stopped))
    except ChildFailed as failure:
        raise _failure(str(failure)) from failure


def decode(out: bytes) -> DatasetFindings:
    """Return what the child wrote. Raises BaseUnavailable, ExaminationFailed."""
    answer = json.loads(out)
    parts = {name: Part(**answer[name]) if answer[name] else None for name in ("training", "validation", "general")}
    findings = DatasetFindings(**{**answer, **parts})
    if findings.unavailable is not None:
        raise BaseUnavailable(findings.unavailable)
    if findings.gave_up is not None:
        raise _failure(findings.gave_up)
    return findings


def _failure(reason: str) -> ExaminationFailed:
    return ExaminationFailed(f"The files could not be read: {reason}.")


def check_steps(asked: FineTuning, findings: DatasetFindings) -> None:
    """Add an error to findings without one where the training would take more than MAX_STEPS steps."""
    if findings.errors:
        return
    steps = plan_of("", asked, findings).steps
    if steps > MAX_STEPS:
        message = (
            f"The training would take {steps} steps, and {MAX_STEPS} are allowed. Take larger batches or fewer epochs."
        )
        error = {"code": "too_many_steps", "message": message, "line": None, "param": "hyperparameters"}
        findings.errors.append(error)


def warn_unserved(asked: FineTuning, findings: DatasetFindings, registry: Registry) -> None:
    """Add a warning that says where the adapter can be served, if its base is not served here."""
    if asked.peft != "full" and asked.base in registry.unserved:
        findings.warnings.append(f"The base '{asked.base}' can be trained and is not served: {VLLM_OFF}")


def plan_of(job_id: str, asked: FineTuning, findings: DatasetFindings) -> FinetunePlan:
    """Return the numbers that a job trains with: those asked for, or what `auto` stands for."""
    assert findings.training is not None
    chosen, rows = asked.hyperparameters, findings.training.rows
    auto_batch = min(max(1, rows // _EXAMPLES_PER_BATCH_SIZE), _MAX_AUTO_BATCH)
    epochs = _DEFAULT_EPOCHS if chosen.n_epochs == "auto" else chosen.n_epochs
    batch = auto_batch if chosen.batch_size == "auto" else chosen.batch_size
    multiplier = 1.0 if chosen.learning_rate_multiplier == "auto" else chosen.learning_rate_multiplier
    per_step = batch * asked.training.gradient_accumulation_steps
    return FinetunePlan(
        job_id=job_id,
        n_epochs=epochs,
        batch_size=batch,
        learning_rate_multiplier=multiplier,
        rows=rows,
        validation_rows=findings.validation.rows if findings.validation else 0,
        tokens=findings.tokens,
        steps=epochs * -(-rows // per_step),
    )
