"""Aliases: a project's own names for models.

A request for the alias is one for its model, whose permissions, limits, prices and usage hold, and which the answer
names. A name that a model has is that model's; an alias stands for a model, never for another alias.
"""

from typing import Annotated, Any, Literal

from fastapi import Path, Query
from fastapi.responses import Response
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.fields import Metadata, MetadataField
from api.http.idempotency import Idempotent
from api.http.paging import Limit20, Order, Page, cursor_details, deletion_details, find, page
from jobs.clock import now
from jobs.errors import Conflict, InvalidRequest, NotFound, Unauthenticated
from jobs.fleet import access, routing
from jobs.fleet.models_file import ANY_MODEL
from jobs.fleet.tables import Model
from jobs.registry import aliases
from jobs.registry.tables import Alias
from jobs.security.tables import Project

router = resource("Aliases", area="aliases")

_LENGTH = 255
_TARGET = 128  # of an audit row
Name = Annotated[str, Field(min_length=1, max_length=_LENGTH, pattern=r"^[^\s\x00-\x1f*]+$")]
Id = Annotated[str, Path(max_length=_LENGTH)]
After = Annotated[str | None, Query(max_length=_LENGTH, description="Id of the last object of the previous page.")]


class AliasObject(BaseModel):
    """An alias. `id` is the name that requests may give as `model`, `model` the model that answers them."""

    id: str
    object: Literal["model.alias"] = "model.alias"
    model: str
    metadata: Metadata | None
    created_at: int
    updated_at: int
    created_by: str


class AliasDeleted(BaseModel):
    id: str
    object: Literal["model.alias.deleted"] = "model.alias.deleted"
    deleted: bool = True


class CreateAlias(Body):
    id: Name
    model: Name
    metadata: MetadataField


class UpdateAlias(Body):
    """The fields to change. Metadata of null is removed."""

    model: Name | None = None
    metadata: MetadataField


def _show(alias: Alias) -> AliasObject:
    return AliasObject(
        id=alias.name,
        model=alias.model,
        metadata=alias.metadata_,
        created_at=int(alias.created_at),
        updated_at=int(alias.updated_at),
        created_by=alias.created_by,
    )


@router.post("/aliases", response_model=AliasObject)
def create_alias(call: Call, once: Idempotent, body: CreateAlias) -> Response:
    """Create an alias; return the one that there is already of this name and model."""

    def make(session: Session) -> AliasObject:
        session.get_one(Project, call.project_id, with_for_update={"key_share": True})  # counts, and makes names, alone
        alias = aliases.find(session, body.id, call.project_id)
        if alias is None:
            return _show(_add(session, call, body))
        if alias.model != body.model:
            message = f"The alias '{alias.name}' stands for '{alias.model}'. POST /v1/aliases/{{id}} changes it."
            raise Conflict(message, param="id", code="alias_exists")
        return _show(alias)

    return once.run(body.fields(), make)


@router.get("/aliases")
def list_aliases(call: Call, after: After = None, limit: Limit20 = 20, order: Order = "desc") -> Page[AliasObject]:
    """List the project's aliases."""
    own = select(Alias).where(Alias.project_id == call.project_id)
    with call.db.read() as session:
        deletions = deletion_details(call, "alias.delete")
        rows, more = find(session, own, Alias, after=after, limit=limit, order=order, deletions=deletions)
    return page(rows, more, _show)


@router.get("/aliases/{alias:path}")
def retrieve_alias(call: Call, alias: Id) -> AliasObject:
    """Return one alias."""
    with call.db.read() as session:
        return _show(_get(session, call, alias))


@router.post("/aliases/{alias:path}")
def update_alias(call: Call, alias: Id, body: UpdateAlias) -> AliasObject:
    """Let an alias stand for another model, within seconds. Batches that are planned already keep theirs."""
    with call.db.write() as session:
        row = _get(session, call, alias, lock=True)
        former = row.model
        if body.model is not None and body.model != former:
            _check_model(session, call, body.model)
            row.model = body.model
        if "metadata" in body.model_fields_set:
            row.metadata_ = body.metadata
        row.updated_at = now()
        _record(call, session, "alias.update", row, former_model=former)
        return _show(row)


@router.delete("/aliases/{alias:path}")
def delete_alias(call: Call, alias: Id) -> AliasDeleted:
    """Delete an alias. Its model stays."""
    with call.db.write() as session:
        row = _get(session, call, alias, lock=True)
        session.delete(row)
        _record(call, session, "alias.delete", row, **cursor_details(row))
        return AliasDeleted(id=row.name)


def _get(session: Session, call: CallContext, name: str, *, lock: bool = False) -> Alias:
    alias = aliases.find(session, name, call.project_id, lock=lock)
    if alias is None:
        raise NotFound(f"No alias found with id '{clip(name)}'.", param="alias")
    return alias


def _add(session: Session, call: CallContext, body: CreateAlias) -> Alias:
    """Add the alias that a request describes. Raises InvalidRequest."""
    if routing.names_with_models(session, call.services.registry(), [body.id], call.project_id):
        message = f"'{clip(body.id)}' is the name of a model, which comes before an alias."
        raise InvalidRequest(message, param="id", code="model_exists")
    _check_model(session, call, body.model)
    if aliases.count(session, call.project_id) >= aliases.MAX_ALIASES:
        message = f"A project has at most {aliases.MAX_ALIASES} aliases. Delete some first."
        raise InvalidRequest(message, param="id", code="too_many_aliases")
    at = now()
    alias = Alias(
        project_id=call.project_id, name=body.id, model=body.model, created_at=at, updated_at=at, created_by=call.actor
    )
    if body.metadata is not None:  # JSON null is not NULL
        alias.metadata_ = body.metadata
    session.add(alias)
    _record(call, session, "alias.create", alias)
    return alias


def _record(call: CallContext, session: Session, action: str, alias: Alias, **details: Any) -> None:
    """Add the audit row of a change. The details have the whole name, for which the target may be too short."""
    call.record(session, action, alias.name[:_TARGET], {"name": alias.name, "model": alias.model, **details})


def _check_model(session: Session, call: CallContext, model: str) -> None:
    """Check that the caller may have a model asked, and that it is no alias. Raises InvalidRequest, Unauthenticated."""
    registry, project_id = call.services.registry(), call.project_id
    try:
        access.check(session, registry, call.work(model, ""))
    except access.AccessDenied as denial:
        if denial.code in access.IDENTITY_CODES:
            raise Unauthenticated(str(denial), code=denial.code) from None
        raise _missing_target(session, call, model) from None
    if routing.names_with_models(session, registry, [model], project_id):
        return
    if model in registry.aliases or aliases.find(session, model, project_id) is not None:
        message = f"'{clip(model)}' is an alias: name the model for which it stands."
        raise InvalidRequest(message, param="model", code="alias_of_alias")
    if session.get(Model, ANY_MODEL) is None:  # else an endpoint takes any name
        raise _missing_target(session, call, model)


def _missing_target(session: Session, call: CallContext, model: str) -> InvalidRequest:
    names = routing.names_of(session, call.services.registry(), None, call.project_id)
    message = f"The model '{clip(model)}' does not exist. {routing.describe_models(names)}"
    return InvalidRequest(message, param="model", code="model_not_found")
