"""Evals and runs that were made elsewhere."""

import sqlalchemy as sa
from alembic import op

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("eval", sa.Column("imported_from", sa.String(255), nullable=True))
    op.create_index("ix_eval_project_imported", "eval", ["project_id", "imported_from"], unique=True)
    op.add_column("eval_run", sa.Column("imported_from", sa.String(255), nullable=True))
    op.create_index("ix_eval_run_eval_imported", "eval_run", ["eval_id", "imported_from"], unique=True)
