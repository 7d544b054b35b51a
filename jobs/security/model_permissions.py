"""The models that a project may use: all of them, those of a list, or all but those of a list."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.security.tables import ModelPermission

Mode = Literal["allow_list", "deny_list"]
#: Models in the list of a project.
MAX_MODELS: Final = 1000


@dataclass(frozen=True, slots=True)
class ModelRule:
    """The permission of a project. Without a `mode` all models are permitted."""

    mode: str | None = None
    model_ids: frozenset[str] = frozenset()

    def permits(self, names: Collection[str]) -> bool:
        """Return whether the model that has all these names is permitted."""
        return self.mode is None or self.model_ids.isdisjoint(names) is (self.mode == "deny_list")


def rule_of(session: Session, project_id: str) -> ModelRule:
    """Return the rule of a project."""
    row = session.get(ModelPermission, project_id)
    return ModelRule() if row is None else ModelRule(row.mode, frozenset(row.model_ids))


def set_rule(session: Session, project_id: str, mode: Mode, model_ids: Sequence[str]) -> ModelPermission:
    """Set the rule of a project, in place of the one that it has."""
    values = {"mode": mode, "model_ids": list(dict.fromkeys(model_ids)), "updated_at": now()}
    return session.merge(ModelPermission(project_id=project_id, **values))
