"""Serve the permissions of models: the models that a project may use. A model that it may not use is hidden from it."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from api.admin.queries import find_active_project, find_project
from api.deps import Admin
from api.http.bodies import Body, Many, resource
from jobs.errors import NotFound
from jobs.security.model_permissions import MAX_MODELS, Mode, set_rule
from jobs.security.tables import ModelPermission

router = resource("Organization", area="management", admin=True)

_PATH = "/organization/projects/{project_id}/model_permissions"


class ModelPermissions(BaseModel):
    """The permission of a project. `model_ids` name models, aliases, bases of tuned models or tuned models."""

    object: Literal["project.model_permissions"] = "project.model_permissions"
    mode: Mode
    model_ids: list[str]


class UpdateModelPermissions(Body):
    mode: Mode
    model_ids: Annotated[Many[Annotated[str, Field(min_length=1, max_length=255)]], Field(max_length=MAX_MODELS)]


class ModelPermissionsDeleted(BaseModel):
    object: Literal["project.model_permissions.deleted"] = "project.model_permissions.deleted"
    deleted: bool


@router.get(_PATH)
def retrieve_model_permissions(call: Admin, project_id: str) -> ModelPermissions:
    """Return which models a project may use; 404 where it may use all."""
    with call.db.read() as session:
        find_project(session, project_id)
        return show_permissions(_get(session, project_id))


@router.post(_PATH)
def update_model_permissions(call: Admin, project_id: str, body: UpdateModelPermissions) -> ModelPermissions:
    """Set which models a project may use. Work that has been accepted is asked again before each shard."""
    with call.db.write() as session:
        find_active_project(session, project_id, lock=True)
        row = set_rule(session, project_id, body.mode, body.model_ids)
        details = {"mode": row.mode, "model_ids": row.model_ids}
        call.record(session, "model_permissions.update", project_id, details, project_id=project_id)
        return show_permissions(row)


@router.delete(_PATH)
def delete_model_permissions(call: Admin, project_id: str) -> ModelPermissionsDeleted:
    """Let a project use all models again."""
    with call.db.write() as session:
        find_active_project(session, project_id, lock=True)
        session.delete(_get(session, project_id))
        call.record(session, "model_permissions.delete", project_id, project_id=project_id)
    return ModelPermissionsDeleted(deleted=True)


def _get(session: Session, project_id: str) -> ModelPermission:
    row = session.get(ModelPermission, project_id)
    if row is None:
        raise NotFound("The project may use all models.", code="model_permissions_not_found")
    return row


def show_permissions(row: ModelPermission) -> ModelPermissions:
    """Return a permission as clients see it."""
    return ModelPermissions(mode=row.mode, model_ids=row.model_ids)
