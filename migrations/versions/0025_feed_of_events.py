"""One feed of events for each project: a position for each event, and where each feed ends.

Events from before get positions in the order of time; later ones have none until the dispatcher has numbered them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

_NUMBER = """
UPDATE event SET position = numbered.position
FROM (
    SELECT subject_id, seq, ROW_NUMBER() OVER (PARTITION BY project_id ORDER BY created_at, subject_id, seq) AS position
    FROM event
) AS numbered
WHERE event.subject_id = numbered.subject_id AND event.seq = numbered.seq
"""
_HEADS = """
INSERT INTO event_head (project_id, position, removed)
SELECT project_id, MAX(position), 0 FROM event GROUP BY project_id
"""
_NUMBERED, _UNNUMBERED = sa.text("position IS NOT NULL"), sa.text("position IS NULL")


def upgrade() -> None:
    op.add_column("event", sa.Column("position", sa.BigInteger(), nullable=True))
    op.create_table(
        "event_head",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("removed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", name="pk_event_head"),
    )
    op.execute(_NUMBER)
    op.execute(_HEADS)
    op.create_index(
        "ix_event_position",
        "event",
        ["project_id", "position"],
        unique=True,
        sqlite_where=_NUMBERED,
        postgresql_where=_NUMBERED,
    )
    op.create_index(
        "ix_event_unnumbered", "event", ["subject_id", "seq"], sqlite_where=_UNNUMBERED, postgresql_where=_UNNUMBERED
    )
