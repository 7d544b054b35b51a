"""The projects that routes of the admin API name."""

from sqlalchemy.orm import Session

from api.errors import clip
from jobs.errors import InvalidRequest, NotFound
from jobs.security.tables import Project


def get_project(session: Session, project_id: str, *, lock: bool = False) -> Project:
    """Return a project, with `lock` one that may be changed. Raises NotFound, InvalidRequest for an archived one."""
    project = session.get(Project, project_id, with_for_update=lock or None)
    if project is None:
        raise NotFound(f"The project '{clip(project_id)}' was not found.", param="project_id", code="project_not_found")
    if lock and project.archived_at is not None:
        raise InvalidRequest("The project has been archived.", param="project_id", code="project_archived")
    return project
