"""The projects of the organization, with their shares of the workers and what their requests may reach."""

from collections.abc import Sequence
from typing import Annotated, Literal, cast

from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.admin.lists import AdminPage, admin_page
from api.admin.model_permissions import ModelPermissions, show_permissions
from api.admin.queries import find_project
from api.deps import Admin
from api.http.bodies import Body, resource
from api.http.fields import unix_seconds
from api.http.key_fields import Name
from api.http.paging import After, Limit20, find
from jobs.security import projects
from jobs.security.tables import ModelPermission, Project

router = resource("Organization", area="organization.projects", admin=True)


class OrganizationProject(BaseModel):
    """A project. `weight` is its share of the workers relative to other projects.

    `allow_external` lets its prompts go to endpoints outside this deployment, `allow_media_urls` lets workers fetch the
    pictures and files that its requests name by URL. `model_permissions` are null where it may use all models.
    """

    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]
    external_key_id: None = None
    residency: None = None
    weight: float
    allow_external: bool
    allow_media_urls: bool
    model_permissions: ModelPermissions | None


class _Settings(Body):
    """The fields that can be set at any time. Keys and regions of others are not served: null alone is taken."""

    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = None
    allow_external: bool | None = None
    allow_media_urls: bool | None = None
    external_key_id: None = None
    residency: None = None
    geography: None = None

    def changes(self) -> projects.Changes:
        """Return what the body sets."""
        settable = self.model_dump(include={*projects.Changes.__annotations__}, exclude_none=True)
        return cast("projects.Changes", settable)


class CreateProject(_Settings):
    name: Name


class UpdateProject(_Settings):
    name: Name | None = None


@router.post("/organization/projects")
def create_project(call: Admin, body: CreateProject) -> OrganizationProject:
    """Create a project."""
    with call.db.write() as session:
        project = projects.create(
            session, body.name, actor=call.actor, changes=body.changes(), request_id=call.request_id
        )
        return _show_project(session, project)


@router.get("/organization/projects")
def list_projects(
    call: Admin,
    after: After = None,
    limit: Limit20 = 20,
    include_archived: Annotated[bool, Query(description="List archived projects too.")] = False,
) -> AdminPage[OrganizationProject]:
    """List the projects, the newest first."""
    every = select(Project)
    statement = every if include_archived else every.where(Project.archived_at.is_(None))
    with call.db.read() as session:
        rows, more = find(session, statement, Project, after=after, limit=limit, among=every)
        shown = _show_projects(session, rows)
    return admin_page(rows, more, lambda row: shown[row.id])


@router.get("/organization/projects/{project_id}")
def retrieve_project(call: Admin, project_id: str) -> OrganizationProject:
    """Return a project, also an archived one."""
    with call.db.read() as session:
        return _show_project(session, find_project(session, project_id))


@router.post("/organization/projects/{project_id}")
def update_project(call: Admin, project_id: str, body: UpdateProject) -> OrganizationProject:
    """Set fields of a project; those that are missing stay. The default project keeps its name."""
    with call.db.write() as session:
        project = find_project(session, project_id, lock=True)
        projects.change(session, project, actor=call.actor, changes=body.changes(), request_id=call.request_id)
        return _show_project(session, project)


@router.post("/organization/projects/{project_id}/archive")
def archive_project(call: Admin, project_id: str) -> OrganizationProject:
    """Archive a project for good: its keys open nothing after two seconds, and its jobs are cancelled.

    Schedules and sources are paused. Files, stores and trained models stay. The default project cannot be archived.
    """
    with call.db.write() as session:
        project = find_project(session, project_id, lock=True)
        projects.archive(session, project, actor=call.actor, request_id=call.request_id)
        return _show_project(session, project)


def _show_project(session: Session, project: Project) -> OrganizationProject:
    return _show_projects(session, [project])[project.id]


def _show_projects(session: Session, rows: Sequence[Project]) -> dict[str, OrganizationProject]:
    """Return projects as clients see them, by id."""
    rules = select(ModelPermission).where(ModelPermission.project_id.in_([row.id for row in rows]))
    permissions = {rule.project_id: show_permissions(rule) for rule in session.scalars(rules)}
    return {
        row.id: OrganizationProject(
            id=row.id,
            name=row.name,
            created_at=int(row.created_at),
            archived_at=unix_seconds(row.archived_at),
            status="active" if row.archived_at is None else "archived",
            weight=row.weight,
            allow_external=row.allow_external,
            allow_media_urls=row.allow_media_urls,
            model_permissions=permissions.get(row.id),
        )
        for row in rows
    }
