"""The project of a key, with the fields of OpenAI's admin API."""

from typing import Literal

from pydantic import BaseModel

from api.deps import Call
from api.http.bodies import resource
from jobs.security.tables import Project

router = resource("Security", area="project")


class ProjectObject(BaseModel):
    """A project. Every other object belongs to one."""

    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    status: Literal["active"] = "active"
    created_at: int


@router.get("/project")
def retrieve_project(call: Call) -> ProjectObject:
    """Return the project of the key that the request is sent with."""
    with call.db.read() as session:
        project = session.get_one(Project, call.project_id)
        return ProjectObject(id=project.id, name=project.name, created_at=int(project.created_at))
