"""Aliases: the names by which a project asks for models that have other names. An alias never stands for an alias.

`jobs.fleet.access` says which model answers for a name: what has the name itself comes before an alias.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.registry.tables import Alias

MAX_ALIASES: Final = 1000  # of a project


def find(session: Session, name: str, project_id: str, *, lock: bool = False) -> Alias | None:
    """Return the alias that a project has of this name; with `lock` nothing else changes it in this transaction."""
    return session.get(Alias, (project_id, name), with_for_update=lock or None)


def aliases_of(session: Session, project_id: str) -> Sequence[Alias]:
    """Return the aliases of a project, the oldest first."""
    rows = select(Alias).where(Alias.project_id == project_id)
    return session.scalars(rows.order_by(Alias.created_at, Alias.name)).all()


def count(session: Session, project_id: str) -> int:
    """Return how many aliases a project has."""
    return session.scalar(select(func.count()).select_from(Alias).where(Alias.project_id == project_id)) or 0
