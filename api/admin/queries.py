"""The projects that routes of the admin API name."""

from sqlalchemy.orm import Session

from api.errors import clip
from jobs.errors import InvalidRequest, NotFound
from jobs.security.tables import Project


def find_project(session: Session, project_id: str, *, lock: bool = False) -> Project:
    """Return a project, archived or not; with `lock`, keep it as it is in this transaction. Raises: NotFound."""
    project = session.get(Project, project_id, with_for_update=lock or None)
    if project is None:
        raise NotFound(f"The project '{clip(project_id)}' was not found.", param="project_id", code="project_not_found")
    return project


def find_active_project(session: Session, project_id: str, *, lock: bool = False) -> Project:
    """Return a project that is not archived. Raises: NotFound, InvalidRequest."""
    project = find_project(session, project_id, lock=lock)
    if project.archived_at is not None:
        message = "The project is archived, and has no members, service accounts, new keys and new settings."
        raise InvalidRequest(message, param="project_id", code="project_archived")
    return project
