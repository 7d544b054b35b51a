"""The tables of a fine-tuning job beside its row in `job`: its plan, steps, events, checkpoints and data.

    job ─┬─ finetune_plan          what planning computed: numbers for `auto`, rows, tokens, steps
         ├─ finetune_step          one row for each training step: the curve
         ├─ finetune_event         what clients read as events
         ├─ finetune_checkpoint    complete checkpoints in storage
         ├─ finetune_tracking      how far the steps have come in MLflow and Weights & Biases
         └─ finetune_data ── dataset    the snapshots that it trains and validates on, by SHA-256

    job of an import ── imported_file   the files that it reads, and whose bytes its model has

These rows stay as long as the job's row.
"""

from typing import Any

from sqlalchemy import Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base, Serial


class FinetunePlan(Base):
    """The numbers that a planned job trains with. `trained_tokens` counts the tokens of all epochs.

    `seconds` is how long workers have held the training under all claims, `device_seconds` how long trainers have run.
    """

    __tablename__ = "finetune_plan"

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    n_epochs: Mapped[int]
    batch_size: Mapped[int]
    learning_rate_multiplier: Mapped[float]
    rows: Mapped[int]
    validation_rows: Mapped[int]
    tokens: Mapped[int]  # of one epoch
    steps: Mapped[int]
    trained_tokens: Mapped[int | None]  # null until training has ended
    estimated_finish: Mapped[float | None]
    tensorboard_file_id: Mapped[str | None] = mapped_column(String(64))
    seconds: Mapped[float] = mapped_column(default=0.0, server_default="0")
    device_seconds: Mapped[float] = mapped_column(default=0.0, server_default="0")


class FinetuneStep(Base):
    """A training step. The columns of validation are null unless the step was evaluated."""

    __tablename__ = "finetune_step"

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    created_at: Mapped[float]
    epoch: Mapped[float]
    train_loss: Mapped[float]
    train_accuracy: Mapped[float | None]
    grad_norm: Mapped[float | None]
    learning_rate: Mapped[float]
    tokens_per_second: Mapped[float | None]
    memory_bytes: Mapped[int | None]
    valid_loss: Mapped[float | None]
    valid_accuracy: Mapped[float | None]


class FinetuneEvent(Base):
    """An event of a job. `position` orders the events of all jobs; `level` is `info`, `warn` or `error`."""

    __tablename__ = "finetune_event"

    position: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(16))  # message | metrics
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None]

    __table_args__ = (Index("ix_finetune_event_job", "job_id", "position"),)


class FinetuneCheckpoint(Base):
    """A complete checkpoint in storage. The row is written after the last of its bytes.

    `bytes` are those that are stored, `model_bytes` those without what only a resumed run reads.
    """

    __tablename__ = "finetune_checkpoint"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(64))
    step: Mapped[int]
    location: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int]
    model_bytes: Mapped[int | None]
    metrics: Mapped[dict[str, Any]]
    keeps_optimizer: Mapped[bool]
    created_at: Mapped[float]

    __table_args__ = (UniqueConstraint("job_id", "step"),)


class FinetuneTracking(Base):
    """The last step of a job that an experiment tracker has taken, in a run that it knows as `run_id`.

    `due_at` is when more is to be sent, or when the claim of the worker that sends ends; null: nothing more is sent.
    `failures` counts those since the last success.
    """

    __tablename__ = "finetune_tracking"

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tracker: Mapped[str] = mapped_column(String(16), primary_key=True)  # mlflow | wandb
    run_id: Mapped[str | None] = mapped_column(String(64))
    step: Mapped[int]
    failures: Mapped[int]
    due_at: Mapped[float | None]

    __table_args__ = (Index("ix_finetune_tracking_due", "tracker", "due_at"),)


class Dataset(Base):
    """Immutable bytes in storage, named by their SHA-256, that jobs train or validate on."""

    __tablename__ = "dataset"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    bytes: Mapped[int]
    location: Mapped[str]
    created_at: Mapped[float]


class FinetuneData(Base):
    """The file that a job reads in a role, and its snapshot once the job is planned.

    Roles are `training`, `validation` and `general`, whose rows forgetting is measured with.

    Where rows of the training file are held out, both roles name that file, and each snapshot holds its own rows.
    """

    __tablename__ = "finetune_data"

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    file_id: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str | None] = mapped_column(String(64))
    rows: Mapped[int | None]

    __table_args__ = (
        Index("ix_finetune_data_file", "file_id"),
        Index("ix_finetune_data_sha256", "sha256"),
    )


class ImportedFile(Base):
    """A file of the project that a job imports under a `name`, as a file of a model. A job that failed has none.

    `bytes` are those of the file, and of the model's copy.
    """

    __tablename__ = "imported_file"

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    file_id: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int]

    __table_args__ = (Index("ix_imported_file_file", "file_id"),)
