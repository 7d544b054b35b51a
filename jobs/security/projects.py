"""Projects: created, changed, and archived for good. None is deleted, because its rows and its audit log stay."""

from typing import Any, Final, TypedDict

from sqlalchemy import update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import flush_unique
from jobs.errors import InvalidRequest
from jobs.ids import new_id
from jobs.ledger import audit
from jobs.retrieval.tables import Source
from jobs.schedules.tables import Schedule
from jobs.security.tables import Project

#: The project that every deployment has: it is neither renamed nor archived.
DEFAULT_PROJECT: Final = "default"


class Changes(TypedDict, total=False):
    """The settings of a project.

    `weight` is its share of the workers relative to other projects. `allow_external` lets its prompts go to endpoints
    outside this deployment, `allow_media_urls` lets workers fetch the pictures and files that its requests name by URL.
    """

    name: str
    weight: float
    allow_external: bool
    allow_media_urls: bool


def create(session: Session, name: str, *, actor: str, changes: Changes, request_id: str | None = None) -> Project:
    """Create a project. Raises: InvalidRequest, where one that is not archived has the name."""
    project = Project(id=new_id("proj_"), name=name, created_at=now())
    session.add(project)
    _write_name(session, name)
    _record(session, project, "project.create", actor, request_id)
    change(session, project, actor=actor, changes=changes, request_id=request_id)
    return project


def change(session: Session, project: Project, *, actor: str, changes: Changes, request_id: str | None = None) -> None:
    """Set what differs.

    Raises: InvalidRequest, for an archived project, for another name of the default project, and for a name that
    another project has.
    """
    _check_active(project)
    new: dict[str, Any] = {name: value for name, value in changes.items() if getattr(project, name) != value}
    if "name" in new:
        _check_not_default(project, "renamed")
    for name, value in new.items():
        setattr(project, name, value)
    if "name" in new:
        _write_name(session, new["name"])
    if new:
        _record(session, project, "project.update", actor, request_id, new)


def archive(session: Session, project: Project, *, actor: str, request_id: str | None = None) -> None:
    """Archive a project: its keys open nothing, its schedules and sources are paused, and its jobs will be cancelled.

    Files, stores and trained models stay. Raises: InvalidRequest, for the default project and an archived one.
    """
    _check_active(project)
    _check_not_default(project, "archived")
    at = project.archived_at = now()
    for table in (Schedule, Source):
        running = update(table).where(table.project_id == project.id, table.paused_at.is_(None))
        session.execute(running.values(paused_at=at))
    _record(session, project, "project.archive", actor, request_id)


def _record(
    session: Session,
    project: Project,
    action: str,
    actor: str,
    request_id: str | None,
    details: dict[str, Any] | None = None,
) -> None:
    audit.record(
        session,
        actor=actor,
        action=action,
        target=project.id,
        project_id=project.id,
        request_id=request_id,
        details=details,
    )


def _check_active(project: Project) -> None:
    if project.archived_at is not None:
        message = f"The project '{project.name}' is archived. Archived projects cannot be changed or used."
        raise InvalidRequest(message, param="project_id", code="project_archived")


def _check_not_default(project: Project, verb: str) -> None:
    if project.name == DEFAULT_PROJECT:
        raise InvalidRequest(f"The default project cannot be {verb}.", param="project_id", code="default_project")


def _write_name(session: Session, name: str) -> None:
    """Write a project with a new name. Raises: InvalidRequest, where one that is not archived has it."""
    message = f"There is a project with the name '{name}'."
    flush_unique(session, InvalidRequest(message, param="name", code="project_exists"))
