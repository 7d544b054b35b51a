"""The time that a fine-tuning job has trained, by the worker's clock and by the device's."""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("seconds", "device_seconds"):
        op.add_column("finetune_plan", sa.Column(name, sa.Float(53), nullable=False, server_default="0"))
