"""Add the answers of shadows that evals grade."""

import sqlalchemy as sa
from alembic import op

revision = "0065"
down_revision = "0064"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "shadow_answer",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("alias", sa.String(255), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_shadow_answer"),
    )
    op.create_index("ix_shadow_answer_project", "shadow_answer", ["project_id", "id"])
    op.create_index("ix_shadow_answer_alias", "shadow_answer", ["project_id", "alias", "created_at"])
    op.create_index("ix_shadow_answer_created_at", "shadow_answer", ["created_at"])
