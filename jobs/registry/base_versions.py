"""Versions of the models that workers load or servers have: which were served, from when on, and from what.

A worker records what it serves when it announces it. Another source of the same name is the next version; one that
comes back keeps its number.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import insert_into
from jobs.registry.tables import BaseVersion


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model as a worker has loaded it. Two loads are the same version if their `fingerprint` is."""

    model: str
    engine: str
    source: str
    fingerprint: str
    license: str | None = None


def record(session: Session, loaded: Iterable[LoadedModel]) -> None:
    """Note that models are served now; those that were loaded from something new are new versions."""
    for model in sorted(loaded, key=lambda model: model.model):  # in one order: several workers may do this at once
        of_model = BaseVersion.model == model.model
        known = select(BaseVersion).where(of_model, BaseVersion.fingerprint == model.fingerprint)
        while (version := session.scalar(known)) is None:  # another worker may take the number first
            last = session.scalar(select(func.max(BaseVersion.number)).where(of_model)) or 0
            row = {
                "model": model.model,
                "number": last + 1,
                "fingerprint": model.fingerprint,
                "engine": model.engine,
                "source": model.source[:512],
                "license": model.license,
                "created_at": now(),
                "seen_at": now(),
            }
            session.execute(insert_into(session, BaseVersion).values(row).on_conflict_do_nothing())
        version.seen_at = now()
