"""Permissions: another project of the deployment may ask for one checkpoint, and for nothing else of its owner."""

from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.finetuning.schemas import CreatePermissions, Permission, PermissionDeleted, show_permission
from api.http.bodies import resource
from api.http.paging import After, Page, find, page
from jobs.errors import NotFound
from jobs.registry import models
from jobs.registry.tables import CheckpointPermission, TunedModel

router = resource("Fine-tuning", area="fine_tuning")


class PermissionList(BaseModel):
    """The permissions that were asked for."""

    object: Literal["list"] = "list"
    data: list[Permission]
    has_more: bool = False


@router.post("/fine_tuning/checkpoints/{fine_tuned_model_checkpoint:path}/permissions")
def create_permissions(call: Call, fine_tuned_model_checkpoint: str, body: CreatePermissions) -> PermissionList:
    """Let projects ask for a checkpoint of this project. A project that may already keeps its permission.

    The ids of projects that do not exist are stored too, and have no effect: no answer says which projects exist.
    """
    with call.db.write() as session:
        model = _find_own_model(session, call, fine_tuned_model_checkpoint)
        rows = models.permit(session, model.name, body.project_ids, created_by=call.caller.key_id)
        call.record(session, "checkpoint.permit", model.id, {"project_ids": sorted(set(body.project_ids))})
        return PermissionList(data=[show_permission(row) for row in rows])


@router.get("/fine_tuning/checkpoints/{fine_tuned_model_checkpoint:path}/permissions")
def list_permissions(
    call: Call,
    fine_tuned_model_checkpoint: str,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Objects on a page.")] = 10,
    order: Annotated[Literal["ascending", "descending"], Query(description="By `created_at`.")] = "descending",
    project_id: Annotated[str | None, Query(max_length=64)] = None,
) -> Page[Permission]:
    """List the permissions for a checkpoint."""
    with call.db.read() as session:
        model = _find_own_model(session, call, fine_tuned_model_checkpoint)
        permissions = select(CheckpointPermission).where(CheckpointPermission.model == model.name)
        if project_id is not None:
            permissions = permissions.where(CheckpointPermission.project_id == project_id)
        direction = "asc" if order == "ascending" else "desc"
        rows, more = find(session, permissions, CheckpointPermission, after=after, limit=limit, order=direction)
    return page(rows, more, show_permission)


@router.delete("/fine_tuning/checkpoints/{fine_tuned_model_checkpoint:path}/permissions/{permission_id}")
def delete_permission(call: Call, fine_tuned_model_checkpoint: str, permission_id: str) -> PermissionDeleted:
    """Take a permission back. What the other project asks for from then on is refused."""
    with call.db.write() as session:
        model = _find_own_model(session, call, fine_tuned_model_checkpoint)
        conditions = CheckpointPermission.id == permission_id, CheckpointPermission.model == model.name
        if session.scalar(delete(CheckpointPermission).where(*conditions).returning(CheckpointPermission.id)) is None:
            raise NotFound(f"No permission found with id '{clip(permission_id)}'.", param="permission_id")
        call.record(session, "checkpoint.revoke", model.id, {"permission_id": permission_id})
    return PermissionDeleted(id=permission_id)


def _find_own_model(session: Session, call: CallContext, name: str) -> TunedModel:
    """Return a model of this project: one that another project permits may not be passed on."""
    model = models.find(session, name, call.project_id)
    if model is None or model.project_id != call.project_id:
        message = f"No checkpoint found with the name '{clip(name)}'."
        raise NotFound(message, param="fine_tuned_model_checkpoint", code="model_not_found")
    return model
