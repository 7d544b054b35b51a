"""Fine-tuning jobs, their data and progress, and the models that they result in."""

import sqlalchemy as sa
from alembic import op

from jobs.db.base import Serial

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def _id(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(64), nullable=nullable)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(255), nullable=False)


def _count(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _number(name: str, *, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Float(53), nullable=nullable)


def upgrade() -> None:
    _progress()
    _data()
    _registry()


def _progress() -> None:
    op.create_table(
        "finetune_plan",
        _id("job_id"),
        _count("n_epochs"),
        _count("batch_size"),
        _number("learning_rate_multiplier"),
        *map(_count, ("rows", "validation_rows", "tokens", "steps")),
        _count("trained_tokens", nullable=True),
        _number("estimated_finish", nullable=True),
        sa.PrimaryKeyConstraint("job_id", name="pk_finetune_plan"),
    )
    op.create_table(
        "finetune_step",
        _id("job_id"),
        _count("step"),
        *map(_number, ("created_at", "epoch", "train_loss")),
        _number("train_accuracy", nullable=True),
        _number("grad_norm", nullable=True),
        _number("learning_rate"),
        _number("tokens_per_second", nullable=True),
        _count("memory_bytes", nullable=True),
        _number("valid_loss", nullable=True),
        _number("valid_accuracy", nullable=True),
        sa.PrimaryKeyConstraint("job_id", "step", name="pk_finetune_step"),
    )
    op.create_table(
        "finetune_event",
        sa.Column("position", Serial, autoincrement=True, nullable=False),
        _id("id"),
        _id("job_id"),
        _number("created_at"),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("position", name="pk_finetune_event"),
        sa.UniqueConstraint("id", name="uq_finetune_event_id"),
    )
    op.create_index("ix_finetune_event_job", "finetune_event", ["job_id", "position"])
    op.create_table(
        "finetune_checkpoint",
        _id("id"),
        _id("job_id"),
        _count("step"),
        _text("location"),
        _id("sha256"),
        _count("bytes"),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("keeps_optimizer", sa.Boolean(), nullable=False),
        _number("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_finetune_checkpoint"),
        sa.UniqueConstraint("job_id", "step", name="uq_finetune_checkpoint_job_id_step"),
    )


def _data() -> None:
    op.create_table(
        "dataset",
        _id("sha256"),
        _count("bytes"),
        _text("location"),
        _number("created_at"),
        sa.PrimaryKeyConstraint("sha256", name="pk_dataset"),
    )
    op.create_table(
        "finetune_data",
        _id("job_id"),
        sa.Column("role", sa.String(16), nullable=False),
        _id("file_id"),
        _id("sha256", nullable=True),
        _count("rows", nullable=True),
        sa.PrimaryKeyConstraint("job_id", "role", name="pk_finetune_data"),
    )
    op.create_index("ix_finetune_data_file", "finetune_data", ["file_id"])
    op.create_index("ix_finetune_data_sha256", "finetune_data", ["sha256"])


def _registry() -> None:
    op.create_table(
        "tuned_model",
        _id("id"),
        _id("project_id"),
        _text("name"),
        _text("base"),
        _id("job_id"),
        _count("checkpoint_step", nullable=True),
        sa.Column("method", sa.String(16), nullable=False),
        _text("location"),
        _id("sha256"),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("data_erased", sa.Boolean(), nullable=False),
        _number("created_at"),
        _number("deleted_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_tuned_model"),
        sa.UniqueConstraint("name", name="uq_tuned_model_name"),
    )
    op.create_index("ix_tuned_model_project", "tuned_model", ["project_id", "state", "created_at", "id"])
    op.create_index("ix_tuned_model_job", "tuned_model", ["job_id"])
    op.create_table(
        "checkpoint_permission",
        _id("id"),
        _text("model"),
        _id("project_id"),
        _id("created_by"),
        _number("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoint_permission"),
        sa.UniqueConstraint("model", "project_id", name="uq_checkpoint_permission_model_project_id"),
    )
