"""How far the steps of trainings have come in experiment trackers, and TensorBoard's file of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "finetune_tracking",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("tracker", sa.String(16), nullable=False),
        sa.Column("run_id", sa.String(64), nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.Float(53), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "tracker", name="pk_finetune_tracking"),
    )
    op.create_index("ix_finetune_tracking_due", "finetune_tracking", ["tracker", "due_at"])
    op.add_column("finetune_plan", sa.Column("tensorboard_file_id", sa.String(64), nullable=True))
