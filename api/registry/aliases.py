"""Aliases: a project's own names for models, with weights, and the history of their moves.

A request for the alias is one for the model that was drawn, whose permissions, limits, prices and usage hold, and which
the answer names. A name that a model has is that model's; an alias stands for models, never for another alias.
The aliases of the models file are listed too, but no request changes them.
"""

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Final, Literal, NoReturn

from fastapi import Path, Query
from fastapi.responses import Response
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import Body, Many, resource
from api.http.fields import Metadata, MetadataField
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, cursor_details, deletion_details, find, page
from jobs.clock import now
from jobs.errors import Conflict, InvalidRequest, NotFound, Unauthenticated
from jobs.fleet import access, routing
from jobs.inference import request_counts
from jobs.inference.request_counts import ShadowCounts
from jobs.registry import aliases
from jobs.registry.aliases import AliasRouting, Comparison, Shadow, WeightedModel
from jobs.registry.tables import Alias, AliasMove, MoveAction

router = resource("Aliases", area="aliases")

_LENGTH: Final = 255
_COUNTED: Final = 86_400  # seconds
_TARGET: Final = 128  # of an audit row
_END_OF_TIME: Final = 253_402_300_799  # the year 9999
Name = Annotated[str, Field(min_length=1, max_length=_LENGTH, pattern=r"^[^\s\x00-\x1f*]+$")]
Id = Annotated[str, Path(max_length=_LENGTH)]
NameCursor = Annotated[str | None, Query(alias="after", max_length=_LENGTH, description="Id of the last object seen.")]
At = Annotated[
    int | None, Query(ge=0, le=_END_OF_TIME, description="Unix seconds: the alias as it stood at the end of this one.")
]


# ── requests ──


class AliasTarget(Body):
    """A model, and the percentage of the requests that it is to answer."""

    model: Name
    weight: Annotated[int, Field(ge=1, le=aliases.WHOLE)]


def _check_targets(targets: list[AliasTarget]) -> list[AliasTarget]:
    if sum(target.weight for target in targets) != aliases.WHOLE:
        raise ValueError(f"The weights are percentages: they sum to {aliases.WHOLE}.")
    _check_names([target.model for target in targets])
    return targets


def _check_names(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("A model is named twice.")
    return names


Targets = Annotated[
    Many[AliasTarget], Field(min_length=1, max_length=aliases.MAX_TARGETS), AfterValidator(_check_targets)
]
Fallbacks = Annotated[Many[Name], Field(max_length=aliases.MAX_FALLBACKS), AfterValidator(_check_names)]


class AliasShadow(Body):
    """A model that is asked the same as the target, once the client has its answer. Nobody is shown what it answers."""

    model: Name
    share: Annotated[int, Field(ge=1, le=aliases.WHOLE, description="Percentage of the requests.")] = aliases.WHOLE
    max_in_flight: Annotated[
        int, Field(ge=1, le=aliases.MAX_IN_FLIGHT, description="Requests beyond are dropped, and counted.")
    ] = 4
    compare: Comparison | None = Field(
        default=None,
        description="Whether the texts of both answers are the same, how their lengths compare, or `grader`: both are "
        "kept for a day, for online evaluations of the alias.",
    )


class AliasFields(Body):
    """The models of an alias: `model` alone, or `targets`, of which the first is the incumbent."""

    model: Name | None = None
    targets: Targets | None = None
    sticky: bool | None = Field(
        default=None, description="The same model for each `safety_identifier`, else `user`, else key."
    )
    fallbacks: Fallbacks | None = Field(
        default=None,
        description="Models that answer, in this order, where no live worker serves the target, or where it fails.",
    )
    fallback_after: Annotated[int, Field(ge=1, le=aliases.MAX_FALLBACK_AFTER)] | None = Field(
        default=None,
        description="Seconds in which an answer has to begin, or a fallback is asked. Null is no limit: the default.",
    )
    rollback: bool | None = Field(
        default=None,
        description="Whether targets that do worse than the incumbent are dropped: the default.",
    )
    shadow: AliasShadow | None = Field(default=None, description="Null where there is none: the default.")
    reason: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        default=None, description="Kept with the move."
    )

    def routing(self, former: AliasRouting | None = None) -> AliasRouting:
        """Return the routing that the fields make of the former one. Raises InvalidRequest."""
        if self.model is not None and self.targets is not None:
            message = "Give 'model' or 'targets', not both."
            raise InvalidRequest(message, param="targets", code="mutually_exclusive_parameters")
        if self.targets is not None:
            targets = tuple(WeightedModel(target.model, target.weight) for target in self.targets)
        elif self.model is not None:
            targets = aliases.single(self.model).targets
        elif former is not None:
            targets = former.targets
        else:
            raise InvalidRequest("Missing required parameter: 'model'.", param="model", code=_MISSING)
        former = former or AliasRouting(targets)
        shadow = former.shadow
        if "shadow" in self.model_fields_set:
            shadow = None if self.shadow is None else Shadow(**self.shadow.model_dump())
        if shadow and shadow.model in {target.model for target in targets}:
            message = f"'{clip(shadow.model)}' is a target: its shadow would be asked twice."
            raise InvalidRequest(message, param="shadow.model", code="shadow_is_target")
        return AliasRouting(
            targets,
            former.sticky if self.sticky is None else self.sticky,
            former.fallbacks if self.fallbacks is None else tuple(self.fallbacks),
            former.rollback if self.rollback is None else self.rollback,
            shadow,
            self.fallback_after if "fallback_after" in self.model_fields_set else former.fallback_after,
        )


class CreateAlias(AliasFields):
    id: Name
    metadata: MetadataField


class UpdateAlias(AliasFields):
    """The fields to change. Metadata of null is removed. `revert` restores the models before the last move."""

    revert: bool = False
    metadata: MetadataField


_MISSING: Final = "missing_required_parameter"
_ROUTING_FIELDS: Final = ("model", "targets", "sticky", "fallbacks", "rollback", "shadow", "fallback_after")


# ── objects ──


class ShownTarget(BaseModel):
    model: str
    weight: int


class ShownShadow(BaseModel):
    model: str
    share: int
    max_in_flight: int
    compare: Comparison | None


class ShadowCountsObject(BaseModel):
    """Count what became of the requests for a shadow in the last day.

    Of `requests` the client had its answer. Those that a worker took are `sent`; those beyond a bound are `dropped`;
    those that met no worker or an error have `failed`. Of those `compared` the text of `equal` is the same, or
    `length_ratio` is the mean length by that of the client's answer.
    """

    requests: int
    sent: int
    dropped: int
    failed: int
    compared: int
    equal: int | None
    length_ratio: float | None


class ShownRouting(BaseModel):
    """Models by weight, and those that answer where the target that was drawn does not."""

    targets: list[ShownTarget]
    sticky: bool
    fallbacks: list[str]
    rollback: bool
    shadow: ShownShadow | None
    fallback_after: int | None


class AliasObject(BaseModel):
    """An alias. `id` is the name that requests may give as `model`; `model` is the incumbent, the first of `targets`.

    An alias of the models file has the `source` `models_file`; no request changes it. The counts of the shadow are in
    the answers to GET requests.
    """

    id: str
    object: Literal["model.alias"] = "model.alias"
    model: str
    targets: list[ShownTarget]
    sticky: bool
    fallbacks: list[str]
    rollback: bool
    shadow: ShownShadow | None
    fallback_after: int | None
    shadow_counts: ShadowCountsObject | None = None
    source: Literal["project", "models_file"] = "project"
    metadata: Metadata | None
    created_at: int
    updated_at: int
    created_by: str | None


class AliasMoveObject(BaseModel):
    """A change of an alias, kept for ever. `routing` is that after the move, null where the alias was deleted.

    `number` counts the moves of the project. `gate` is what a gate reported about the move.
    """

    id: str
    object: Literal["model.alias.move"] = "model.alias.move"
    alias: str
    number: int
    action: MoveAction
    routing: ShownRouting | None
    actor: str
    reason: str | None
    gate: dict[str, Any] | None
    created_at: int


class AliasDeleted(BaseModel):
    id: str
    object: Literal["model.alias.deleted"] = "model.alias.deleted"
    deleted: bool = True


def _show_all(session: Session, rows: Sequence[Alias]) -> list[AliasObject]:
    """Show aliases of one project, with the counts of their shadows."""
    shadows = {row.name: shadow for row in rows if (shadow := aliases.routing_of(row).shadow)}
    start = int(now()) - _COUNTED
    counts = request_counts.summarize_shadows(session, rows[0].project_id, shadows, start) if shadows else {}
    shown = [_show(row) for row in rows]
    for alias in shown:
        if shadow := shadows.get(alias.id):
            alias.shadow_counts = _show_counts(shadow, counts.get((alias.id, shadow.model), ShadowCounts()))
    return shown


def _show_counts(shadow: Shadow, counts: ShadowCounts) -> ShadowCountsObject:
    fields: dict[str, Any] = counts._asdict()
    if shadow.compare != "exact_match":
        fields["equal"] = None
    has_ratio = shadow.compare == "length" and counts.compared
    fields["length_ratio"] = counts.length_ratio / counts.compared if has_ratio else None
    return ShadowCountsObject(**fields)


def _show(alias: Alias) -> AliasObject:
    return AliasObject(
        id=alias.name,
        model=alias.model,
        metadata=alias.metadata_,
        created_at=int(alias.created_at),
        updated_at=int(alias.updated_at),
        created_by=alias.created_by,
        **aliases.routing_of(alias).to_json(),
    )


def _show_static(name: str, model: str, at: int) -> AliasObject:
    """Show an alias of the models file, which was written at a time."""
    fields = aliases.single(model).to_json()
    of_file: dict[str, Any] = {"source": "models_file", "metadata": None, "created_by": None}
    return AliasObject(id=name, model=model, created_at=at, updated_at=at, **of_file, **fields)


def _show_move(move: AliasMove) -> AliasMoveObject:
    return AliasMoveObject(
        id=move.id,
        alias=move.name,
        number=move.number,
        action=move.action,
        routing=None if move.routing is None else ShownRouting(**aliases.read_routing(move.routing).to_json()),
        actor=move.actor,
        reason=move.reason,
        gate=move.gate,
        created_at=int(move.at),
    )


# ── routes ──


@router.post("/aliases", response_model=AliasObject)
def create_alias(call: Call, once: Idempotent, body: CreateAlias) -> Response:
    """Create an alias; return the one that there is already of this name and these models."""

    def make(session: Session) -> AliasObject:
        alias, routing_ = aliases.find(session, body.id, call.project_id, lock=True), body.routing()
        if alias is None:
            return _show(_add(session, call, body, routing_))
        if aliases.routing_of(alias) != routing_:
            message = f"The alias '{alias.name}' stands for '{alias.model}'. POST /v1/aliases/{{id}} changes it."
            raise Conflict(message, param="id", code="alias_exists")
        return _show(alias)

    return once.run(body.fields(), make)


@router.get("/aliases")
def list_aliases(call: Call, after: NameCursor = None, limit: Limit20 = 20, order: Order = "desc") -> Page[AliasObject]:
    """List the project's aliases, and as the oldest those of the models file."""
    with call.db.read() as session:
        static = _static_aliases(session, call)
        static = static if order == "asc" else static[::-1]
        ids = [alias.id for alias in static]
        is_static = after in ids
        if is_static:
            static = static[ids.index(str(after)) + 1 :]
        if order == "asc":
            first = static if is_static or after is None else []
            own, more = _find_page(session, call, None if is_static else after, max(limit - len(first), 0), order)
            shown = [*first[:limit], *own]
            more = more or len(first) > limit
        else:
            own, more = ([], False) if is_static else _find_page(session, call, after, limit, order)
            last = [] if more else static
            shown = [*own, *last][:limit]
            more = more or len(own) + len(last) > limit
    first_id, last_id = (shown[0].id, shown[-1].id) if shown else (None, None)
    return Page(data=shown, first_id=first_id, last_id=last_id, has_more=more)


@router.get("/alias_moves")
def list_alias_moves(
    call: Call,
    alias: Annotated[str | None, Query(max_length=_LENGTH, description="The moves of this alias alone.")] = None,
    after: After = None,
    limit: Limit20 = 20,
    order: Order = "desc",
) -> Page[AliasMoveObject]:
    """List the moves of the project's aliases, also of deleted ones. All are kept."""
    own = select(AliasMove).where(AliasMove.project_id == call.project_id)
    chosen = own if alias is None else own.where(AliasMove.name == alias)
    with call.db.read() as session:
        rows, more = find(session, chosen, AliasMove, after=after, limit=limit, order=order, among=own, by="number")
    return page(rows, more, _show_move)


@router.get("/aliases/{alias:path}")
def retrieve_alias(call: Call, alias: Id, at: At = None) -> AliasObject:
    """Return one alias, as it is or as it stood at a time, then without metadata. A deleted one has its times too."""
    with call.db.read() as session:
        if at is not None:
            return _past_alias(session, call, alias, at)
        own = aliases.find(session, alias, call.project_id)
        if own is not None:
            return _show_all(session, [own])[0]
        static = {shown.id: shown for shown in _static_aliases(session, call)}
        return static.get(alias) or _raise_missing(alias)


@router.post("/aliases/{alias:path}", response_model=AliasObject)
def update_alias(call: Call, once: Idempotent, alias: Id, body: UpdateAlias) -> Response:
    """Let an alias stand for other models, within seconds. Batches that are planned already keep theirs."""
    if body.revert and body.model_fields_set.intersection(_ROUTING_FIELDS):
        message = "'revert' restores the models of before: name none."
        raise InvalidRequest(message, param="revert", code="mutually_exclusive_parameters")

    def make(session: Session) -> AliasObject:
        row = _get(session, call, alias)
        former = aliases.routing_of(row)
        new = _restore(session, row) if body.revert else body.routing(former)
        if "metadata" in body.model_fields_set:
            row.metadata_, row.updated_at = body.metadata, now()
        if new != former:
            _check_models(session, call, body, new, former.models)
            action: MoveAction = "revert" if body.revert else "update"
            aliases.move(session, row, new, action, actor=call.actor, reason=body.reason)
        _record(call, session, "alias.update", row, former_model=former.incumbent, former=former.to_json())
        return _show(row)

    return once.run(body.fields(), make)


@router.delete("/aliases/{alias:path}")
def delete_alias(call: Call, alias: Id) -> AliasDeleted:
    """Delete an alias. Its models and its moves stay."""
    with call.db.write() as session:
        row = _get(session, call, alias)
        _record(call, session, "alias.delete", row, **cursor_details(row))
        aliases.move(session, row, None, "delete", actor=call.actor)
        return AliasDeleted(id=row.name)


def _find_page(
    session: Session, call: CallContext, after: str | None, limit: int, order: str
) -> tuple[list[AliasObject], bool]:
    """Return a page of the project's own aliases, and whether there are more."""
    own = select(Alias).where(Alias.project_id == call.project_id)
    deletions = deletion_details(call, "alias.delete")
    rows, more = find(session, own, Alias, after=after, limit=limit, order=order, deletions=deletions)
    return _show_all(session, rows), more


def _static_aliases(session: Session, call: CallContext) -> list[AliasObject]:
    """Return the aliases of the models file."""
    registry = call.services.registry()
    static, at = access.static_aliases(session, registry, call.project_id), int(registry.stamp[0] / 1e9)
    return [_show_static(name, model, at) for name, model in static.items()]


def _get(session: Session, call: CallContext, name: str) -> Alias:
    """Return an alias of the project, which this transaction alone changes. Raises Conflict, NotFound."""
    alias = aliases.find(session, name, call.project_id, lock=True)
    if alias is None and name in access.static_aliases(session, call.services.registry(), call.project_id):
        message = f"The alias '{clip(name)}' is one of the models file, which the operator changes."
        raise Conflict(message, param="alias", code="alias_read_only")
    return alias or _raise_missing(name)


def _raise_missing(name: str) -> NoReturn:
    raise NotFound(f"No alias found with id '{clip(name)}'.", param="alias")


def _past_alias(session: Session, call: CallContext, name: str, at: int) -> AliasObject:
    """Return an alias of the project as it stood at the end of a second. Raises NotFound."""
    last = aliases.last_move(session, name, call.project_id, until=at + 1)
    if last is None or last.routing is None:
        raise NotFound(f"No alias '{clip(name)}' stood at that time.", param="alias")
    creation, routing_ = aliases.creation_of(session, last), aliases.read_routing(last.routing)
    return AliasObject(
        id=name,
        model=routing_.incumbent,
        metadata=None,
        created_at=int(creation.at),
        updated_at=int(last.at),
        created_by=creation.actor,
        **routing_.to_json(),
    )


def _restore(session: Session, alias: Alias) -> AliasRouting:
    """Return the routing before the last move. Raises Conflict."""
    former = aliases.former_routing(session, alias)
    if former is None:
        raise Conflict(f"The alias '{alias.name}' has not moved yet.", param="revert", code="alias_not_moved")
    return former


def _add(session: Session, call: CallContext, body: CreateAlias, new: AliasRouting) -> Alias:
    """Add the alias that a request describes. Raises InvalidRequest."""
    if routing.names_with_models(session, call.services.registry(), [body.id], call.project_id):
        message = f"'{clip(body.id)}' is the name of a model, which comes before an alias."
        raise InvalidRequest(message, param="id", code="model_exists")
    _check_models(session, call, body, new)
    if aliases.count(session, call.project_id) >= aliases.MAX_ALIASES:
        message = f"A project has at most {aliases.MAX_ALIASES} aliases. Delete some first."
        raise InvalidRequest(message, param="id", code="too_many_aliases")
    alias = Alias(project_id=call.project_id, name=body.id, created_at=now(), created_by=call.actor)
    if body.metadata is not None:  # JSON null is not NULL
        alias.metadata_ = body.metadata
    aliases.move(session, alias, new, "create", actor=call.actor, reason=body.reason)
    _record(call, session, "alias.create", alias)
    return alias


def _record(call: CallContext, session: Session, action: str, alias: Alias, **details: Any) -> None:
    """Add the audit row of a change. The details have the whole name, for which the target may be too short."""
    fields = {"name": alias.name, "model": alias.model, **aliases.routing_of(alias).to_json()}
    call.record(session, action, alias.name[:_TARGET], {**fields, **details})


def _check_models(
    session: Session, call: CallContext, body: AliasFields, new: AliasRouting, known: Collection[str] = ()
) -> None:
    """Check the models of a routing, except `known` ones. Raises InvalidRequest, Unauthenticated."""
    params = {model: f"fallbacks[{n}]" for n, model in enumerate(new.fallbacks)}
    params |= {target.model: f"targets[{n}].model" for n, target in enumerate(new.targets)}
    params |= {body.model: "model"} if body.model else {}
    params |= {new.shadow.model: "shadow.model"} if new.shadow else {}
    unknown = {model: param for model, param in params.items() if model not in known}
    try:
        access.check_alias(session, call.services.registry(), call.work(new.incumbent, ""), unknown)
    except access.AccessDenied as denial:
        raise Unauthenticated(str(denial), code=denial.code) from None
