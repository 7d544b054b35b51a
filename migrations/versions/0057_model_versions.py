"""Add the versions of tuned models and the moves between stages, and number the models that there are."""

import sqlalchemy as sa
from alembic import op

revision = "0057"
down_revision = "0056"
branch_labels = None
depends_on = None

_ROWS = 500  # that are inserted by one statement


def upgrade() -> None:
    versions = op.create_table(
        "model_version",
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("family", sa.String(255), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("semantic_version", sa.String(64)),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("license", sa.String(255)),
        *(sa.Column(name, sa.String(64)) for name in ("git_commit", "dvc_hash")),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("created_by", sa.String(64)),
        sa.PrimaryKeyConstraint("model", name="pk_model_version"),
        sa.UniqueConstraint("project_id", "family", "number", name="uq_model_version_project_id_family_number"),
        sa.UniqueConstraint(
            "project_id", "family", "semantic_version", name="uq_model_version_project_id_family_semantic_version"
        ),
        sa.Index("ix_model_version_project_created", "project_id", "created_at", "model"),
        sa.Index(
            "ix_model_version_production",
            "project_id",
            "family",
            unique=True,
            sqlite_where=sa.text("stage = 'production'"),
            postgresql_where=sa.text("stage = 'production'"),
        ),
    )
    op.create_table(
        "model_move",
        *(sa.Column(name, sa.String(64), nullable=False) for name in ("id", "project_id")),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Float(53), nullable=False),
        *(sa.Column(name, sa.String(16), nullable=False) for name in ("former_stage", "stage")),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("reason", sa.String(512)),
        sa.Column("gate", sa.JSON()),
        sa.PrimaryKeyConstraint("id", name="pk_model_move"),
        sa.UniqueConstraint("project_id", "number", name="uq_model_move_project_id_number"),
        sa.Index("ix_model_move_model", "project_id", "model", "number"),
    )
    if not op.get_context().as_sql:
        _number_models(versions)


def _number_models(versions: sa.Table) -> None:
    """Make a version of each result of a fine-tuning job, numbered within its family in the order of creation."""
    columns = ("id", "project_id", "name", "base", "job_id", "checkpoint_step", "created_at")
    model = sa.table("tuned_model", *(sa.column(name) for name in columns))
    job = sa.table("job", sa.column("id"), sa.column("key_id"))
    results = sa.select(model, job.c.key_id).outerjoin_from(model, job, job.c.id == model.c.job_id)
    results = results.where(model.c.checkpoint_step.is_(None))
    connection = op.get_bind()
    numbers: dict[tuple[str, str], int] = {}
    rows = []
    for row in connection.execute(results.order_by(model.c.project_id, model.c.created_at, model.c.id)).all():
        suffix = row.name.rpartition(":")[0].rpartition(":")[2]
        family = row.project_id, f"{row.base}:{suffix}"
        numbers[family] = numbers.get(family, 0) + 1
        rows.append(
            {
                "model": row.name,
                "project_id": row.project_id,
                "family": family[1],
                "number": numbers[family],
                "stage": "none",
                "created_at": row.created_at,
                "created_by": f"key:{row.key_id}" if row.key_id else None,
            }
        )
    for start in range(0, len(rows), _ROWS):
        connection.execute(sa.insert(versions), rows[start : start + _ROWS])
