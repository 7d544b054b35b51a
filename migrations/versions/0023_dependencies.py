"""Jobs that wait for other jobs, jobs that are made for another, and jobs without a deadline.

Jobs from before wait for no other and have no parent; each keeps its deadline.
"""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

_PARTIAL = {
    "ix_job_parent": (["parent_id", "state"], sa.text("parent_id IS NOT NULL")),
    "ix_job_waiting_for_job": (["id"], sa.text("waiting_for = 'job'")),
}


def upgrade() -> None:
    with op.batch_alter_table("job") as job:
        job.add_column(sa.Column("parent_id", sa.String(64), nullable=True))
        job.alter_column("deadline", existing_type=sa.Float(53), nullable=True)
    for name, (columns, where) in _PARTIAL.items():
        op.create_index(name, "job", columns, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "job_dependency",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("after_id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "after_id", name="pk_job_dependency"),
    )
    op.create_index("ix_job_dependency_after", "job_dependency", ["after_id"])
