"""Models: those of the models file with their aliases, and those that endpoints have shown."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import select

from api.deps import Call, CallContext
from api.routing import resource
from api.validation import clip
from jobs.errors import NotFound, PermissionDenied
from jobs.models import Model as Shown

router: APIRouter = resource("Models")


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class ModelDeleted(BaseModel):
    id: str
    object: Literal["model"] = "model"
    deleted: bool


@router.get("/models")
def list_models(call: Call) -> ModelList:
    """Every name that a request may ask for."""
    return ModelList(data=list(_models(call).values()))


@router.get("/models/{model:path}")
def retrieve_model(call: Call, model: str) -> Model:
    """One model."""
    return _get(call, model)


@router.delete("/models/{model:path}")
def delete_model(call: Call, model: str) -> ModelDeleted:
    """Delete a model that the project has made. The deployment's own stay."""
    name = _get(call, model).id
    message = f"The model '{name}' belongs to this deployment and cannot be deleted."
    raise PermissionDenied(message, code="model_not_deletable")


def _get(call: CallContext, name: str) -> Model:
    found = _models(call).get(name)
    if found is None:
        raise NotFound(f"The model '{clip(name)}' does not exist.", param="model", code="model_not_found")
    return found


def _models(call: CallContext) -> dict[str, Model]:
    registry = call.services.registry()
    created = int(registry.stamp[0] / 1e9)
    found = {
        name: Model(id=name, created=created, owned_by=model.owned_by)
        for name, model in ((name, registry.resolve(name)) for name in (*registry.models, *registry.aliases))
        if model is not None
    }
    with call.db.read() as session:
        for row in session.scalars(select(Shown).order_by(Shown.id)):
            found.setdefault(row.id, Model(id=row.id, created=int(row.created_at), owned_by=row.owned_by))
    return found
