"""Families of every kind: names with versions, whoever makes the versions.

tuned_model   a base and a suffix: the results of fine-tuning jobs and imports
base          a model that workers load: what it was loaded from
server_model  a model of a server behind a URL, whose weights nobody here knows
prompt        the versions of a prompt
index         the indexes of a vector store, numbered by their age

Each kind is a query of its versions with the same columns, in which the lists of families and of versions look. A
family is listed to those keys that may read the objects of its kind.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_args

from fastapi import Path, Query
from pydantic import BaseModel
from sqlalchemy import ColumnElement, RowMapping, Select, Subquery, and_, case, func, null, select
from sqlalchemy.orm import Session, aliased

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import resource
from api.http.paging import Limit20, Page
from jobs.errors import InvalidRequest, NotFound
from jobs.fleet import routing
from jobs.fleet.models_file import EngineKind
from jobs.prompts.tables import Prompt, PromptVersion
from jobs.registry.model_versions import Stage
from jobs.registry.models import DELETED
from jobs.registry.tables import BaseVersion, ModelVersion, TunedModel
from jobs.retrieval import indexes
from jobs.retrieval.tables import VectorStore
from jobs.security.permissions import permission_for

router = resource("Model versions", area="model_versions")

FamilyKind = Literal["base", "index", "prompt", "server_model", "tuned_model"]
_LENGTH = 320  # of an id

FamilyAfter = Annotated[
    str | None, Query(max_length=_LENGTH, description="Id of the last object of the previous page.")
]


# ── objects ──


class FamilyObject(BaseModel):
    """A family. `id` is its kind and its name, `<kind>:<name>`.

    `versions` is how many there are, `latest` the number of the newest, `production` that of the one in use: the stage
    of a tuned model, the default version of a prompt, the index that searches read, what a worker announced last.
    """

    id: str
    object: Literal["family"] = "family"
    kind: FamilyKind
    name: str
    versions: int
    latest: int
    production: int | None
    created_at: int


class FamilyVersionObject(BaseModel):
    """A version of a family. `name` is what a request asks for, or the id of a prompt or an index.

    `fingerprint` tells versions apart: the SHA-256 of a tuned model's files or of a prompt's content, of a base that of
    its source, or of samples of the weights in its folder; null for an index. `source` is the base of a tuned model,
    the package, commit or folder of a base, the embedding model of an index. `seen_at` is when a worker announced it
    last.
    """

    id: str
    object: Literal["family.version"] = "family.version"
    family: str
    number: int
    name: str
    stage: Stage
    fingerprint: str | None
    source: str | None
    license: str | None
    created_at: int
    created_by: str | None
    seen_at: int | None


# ── kinds ──


def _columns(
    *,
    family: Any,
    number: Any,
    name: Any,
    stage: Any,
    fingerprint: Any,
    created_at: Any,
    source: Any = None,
    license_: Any = None,
    created_by: Any = None,
    seen_at: Any = None,
) -> Select[Any]:
    given = {"family": family, "number": number, "name": name, "stage": stage, "fingerprint": fingerprint}
    given |= {"source": source, "license": license_, "created_at": created_at}
    given |= {"created_by": created_by, "seen_at": seen_at}
    return select(*((null() if column is None else column).label(label) for label, column in given.items()))


def _select_models(_session: Session, call: CallContext) -> Select[Any]:
    of_base = TunedModel.manifest["run"]["base"]["license"].as_string()
    columns = _columns(
        family=ModelVersion.family,
        number=ModelVersion.number,
        name=ModelVersion.model,
        stage=ModelVersion.stage,
        fingerprint=TunedModel.sha256,
        source=TunedModel.base,
        license_=func.coalesce(ModelVersion.license, of_base),
        created_at=ModelVersion.created_at,
        created_by=ModelVersion.created_by,
    )
    joined = columns.join_from(ModelVersion, TunedModel, TunedModel.name == ModelVersion.model)
    return joined.where(ModelVersion.project_id == call.project_id, TunedModel.state != DELETED)


def _select_bases(*, of_servers: bool) -> Callable[[Session, CallContext], Select[Any]]:
    def versions(session: Session, call: CallContext) -> Select[Any]:
        is_remote = BaseVersion.engine == EngineKind.HTTP
        of_kind = is_remote if of_servers else ~is_remote
        is_permitted = routing.permission_of(session, call.services.registry(), call.project_id)
        names = session.scalars(select(BaseVersion.model).where(of_kind).distinct())
        other = aliased(BaseVersion)
        last = select(func.max(other.seen_at)).where(other.model == BaseVersion.model).scalar_subquery()
        return _columns(
            family=BaseVersion.model,
            number=BaseVersion.number,
            name=BaseVersion.model,
            stage=case((BaseVersion.seen_at == last, "production"), else_="archived"),
            fingerprint=BaseVersion.fingerprint,
            source=BaseVersion.source,
            license_=BaseVersion.license,
            created_at=BaseVersion.created_at,
            seen_at=BaseVersion.seen_at,
        ).where(of_kind, BaseVersion.model.in_([name for name in names if is_permitted(name)]))

    return versions


def _select_prompts(_session: Session, call: CallContext) -> Select[Any]:
    is_default = Prompt.default_version == PromptVersion.version
    columns = _columns(
        family=PromptVersion.prompt_id,
        number=PromptVersion.version,
        name=PromptVersion.prompt_id,
        stage=case((Prompt.archived_at.is_not(None), "archived"), (is_default, "production"), else_="none"),
        fingerprint=PromptVersion.hash,
        created_at=PromptVersion.created_at,
        created_by=PromptVersion.created_by,
    )
    same = and_(Prompt.project_id == PromptVersion.project_id, Prompt.id == PromptVersion.prompt_id)
    return columns.join_from(PromptVersion, Prompt, same).where(PromptVersion.project_id == call.project_id)


def _select_indexes(_session: Session, call: CallContext) -> Select[Any]:
    store = aliased(VectorStore)
    root: ColumnElement[str] = func.coalesce(VectorStore.parent_id, VectorStore.id)
    in_use = func.coalesce(store.index_id, store.id) == VectorStore.id
    by_age = func.row_number().over(partition_by=root, order_by=(VectorStore.created_at, VectorStore.id))
    columns = _columns(
        family=root,
        number=by_age,
        name=VectorStore.id,
        stage=case((in_use, "production"), (VectorStore.replaced_at.is_not(None), "archived"), else_="none"),
        fingerprint=None,
        source=VectorStore.model,
        created_at=VectorStore.created_at,
    )
    joined = columns.join_from(VectorStore, store, store.id == root)
    return joined.where(VectorStore.project_id == call.project_id, ~indexes.EMPTIED)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of families: the area of the permission to read them, and the query of their versions."""

    area: str
    versions: Callable[[Session, CallContext], Select[Any]]


_KINDS: Final[Mapping[FamilyKind, _Kind]] = {
    "base": _Kind("model_versions", _select_bases(of_servers=False)),
    "index": _Kind("vector_stores", _select_indexes),
    "prompt": _Kind("prompts", _select_prompts),
    "server_model": _Kind("model_versions", _select_bases(of_servers=True)),
    "tuned_model": _Kind("model_versions", _select_models),
}


# ── routes ──


@router.get("/families")
def list_families(
    call: Call,
    after: FamilyAfter = None,
    limit: Limit20 = 20,
    kind: Annotated[FamilyKind | None, Query(description="Only families of this kind.")] = None,
) -> Page[FamilyObject]:
    """List the names that have versions, by kind and name: tuned models, bases, models of servers, prompts, indexes."""
    begin = None if after is None else _parse(call, after, "after")
    rows: list[FamilyObject] = []
    with call.db.read() as session:
        for each in _readable(call):
            if kind in (None, each) and (begin is None or each >= begin[0]):
                behind = begin[1] if begin is not None and each == begin[0] else None
                rows += _families(session, call, each, behind, limit + 1 - len(rows))
    return _page(rows, limit)


@router.get("/families/{family:path}/versions")
def list_family_versions(
    call: Call,
    family: Annotated[str, Path(max_length=_LENGTH, description="The id of a family.")],
    after: FamilyAfter = None,
    limit: Limit20 = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By `number`.")] = "desc",
) -> Page[FamilyVersionObject]:
    """List the versions of a family, the newest first."""
    try:
        kind, name = _parse(call, family, "family")
    except InvalidRequest:
        raise _unknown(family) from None
    behind = None if after is None else _number_of(family, after)
    with call.db.read() as session:
        versions = _KINDS[kind].versions(session, call).subquery()
        own = select(versions).where(versions.c.family == name)
        ordered = own.order_by(versions.c.number.desc() if order == "desc" else versions.c.number).limit(limit + 1)
        if behind is not None:
            ordered = ordered.where(versions.c.number < behind if order == "desc" else versions.c.number > behind)
        rows = session.execute(ordered).mappings().all()
        if not rows and session.execute(own.limit(1)).first() is None:
            raise _unknown(family)
    return _page([_show(family, row) for row in rows], limit)


def _readable(call: CallContext) -> Iterator[FamilyKind]:
    for kind in sorted(get_args(FamilyKind)):
        if permission_for(_KINDS[kind].area, "GET") in call.caller.permissions:
            yield kind


def _families(
    session: Session, call: CallContext, kind: FamilyKind, after: str | None, limit: int
) -> list[FamilyObject]:
    versions: Subquery = _KINDS[kind].versions(session, call).subquery()
    name, number = versions.c.family, versions.c.number
    in_use = func.max(case((versions.c.stage == "production", number)))
    rows = select(name, func.count(), func.max(number), in_use, func.min(versions.c.created_at)).group_by(name)
    if after is not None:
        rows = rows.where(name > after)
    return [
        FamilyObject(
            id=f"{kind}:{family}",
            kind=kind,
            name=family,
            versions=count,
            latest=latest,
            production=production,
            created_at=int(created),
        )
        for family, count, latest, production, created in session.execute(rows.order_by(name).limit(limit))
    ]


def _show(family: str, row: RowMapping) -> FamilyVersionObject:
    times = {"created_at": int(row["created_at"]), "seen_at": None if row["seen_at"] is None else int(row["seen_at"])}
    return FamilyVersionObject.model_validate({**row, **times, "family": family, "id": f"{family}:{row['number']}"})


def _page(objects: Sequence[Any], limit: int) -> Page[Any]:
    shown = list(objects[:limit])
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    return Page(data=shown, first_id=first, last_id=last, has_more=len(objects) > limit)


def _parse(call: CallContext, family: str, param: str) -> tuple[FamilyKind, str]:
    """Return the kind and the name in the id of a family that the key may read. Raises InvalidRequest."""
    kind, _, name = family.partition(":")
    for known in _readable(call):
        if known == kind and name:
            return known, name
    raise InvalidRequest(f"No object with id '{clip(family)}'.", param=param, code="invalid_cursor")


def _number_of(family: str, after: str) -> int:
    name, _, number = after.rpartition(":")
    if name != family or not (number.isascii() and number.isdigit() and len(number) < 16):
        raise InvalidRequest(f"No object with id '{clip(after)}'.", param="after", code="invalid_cursor")
    return int(number)


def _unknown(family: str) -> NotFound:
    return NotFound(f"No family found with id '{clip(family)}'.", param="family")
