"""The limits of a project: those that it has of its own, in place of the settings of the deployment."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.errors import InvalidRequest
from jobs.ledger import audit
from jobs.security.tables import Project
from jobs.setting_groups import ProjectSettings
from jobs.settings import Settings

#: The limits, each with the setting that holds for projects without one of their own.
SETTINGS: Final[Mapping[str, str]] = {
    name: f"project_{name}" for name in ("max_bytes", "max_queued_tokens", "finetune_jobs", "eval_runs")
}


def limit_of(session: Session, config: Settings, project_id: str, name: str) -> int:
    """Return a limit of a project, by its name in SETTINGS. Where the setting takes 0, 0 is no limit."""
    own = session.scalar(select(Project.limits).where(Project.id == project_id)) or {}
    return int(own.get(name, getattr(config, SETTINGS[name])))


def set_limits(session: Session, project: Project, changes: Mapping[str, int | None], *, actor: str) -> None:
    """Give a project limits of its own; None takes one away. Raises InvalidRequest."""
    if unknown := changes.keys() - SETTINGS.keys():
        message = f"There is no limit '{min(unknown)[:64]}'. Limits are: {', '.join(SETTINGS)}."
        raise InvalidRequest(message, param="limits", code="unknown_parameter")
    own: dict[str, Any] = {**(project.limits or {}), **changes}
    own = {name: value for name, value in own.items() if value is not None}
    try:
        ProjectSettings.model_validate({SETTINGS[name]: value for name, value in own.items()}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).removeprefix("project_")
        raise InvalidRequest(
            f"Invalid '{name}': {first['msg']}.", param=f"limits.{name}", code="invalid_value"
        ) from None
    project.limits = own or None
    details = {"limits": dict(changes)}
    audit.record(
        session, actor=actor, action="project.limits", target=project.id, project_id=project.id, details=details
    )
