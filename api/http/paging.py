"""Pages of lists for all routes: `after`, `limit`, `order`; newest first, by `created_at` and then id.

A page begins behind the row that `after` names (keyset pagination), so a page deep in a list costs as much as the
first, and rows added meanwhile neither repeat nor hide others. An `after` that names no row of this project is an
error.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

from fastapi import Depends, Query
from pydantic import BaseModel
from sqlalchemy import ColumnElement, Select, exists, func, literal, or_, select, tuple_
from sqlalchemy.orm import Session

from api.deps import CallContext
from api.errors import clip
from api.http.fields import bracket_entries
from jobs.db.base import matching
from jobs.errors import InvalidRequest
from jobs.ledger.tables import Audit

_CURSOR_FIELD = "created_at"
Row = TypeVar("Row")
Shown = TypeVar("Shown")

After = Annotated[str | None, Query(max_length=64, description="Id of the last object of the previous page.")]
Before = Annotated[str | None, Query(max_length=64, description="Id of the first object of the next page.")]
Order = Annotated[Literal["asc", "desc"], Query(description="By `created_at`.")]
Limit20 = Annotated[int, Query(ge=1, le=100, description="Objects on a page.")]


@dataclass(frozen=True, slots=True)
class Ascending:
    """The query of a list whose oldest objects come first."""

    after: After = None
    limit: Limit20 = 20
    order: Order = "asc"


OldestFirst = Annotated[Ascending, Depends()]


class Page(BaseModel, Generic[Shown]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[Shown]
    first_id: str | None
    last_id: str | None
    has_more: bool


def find(
    session: Session,
    statement: Select[Row],
    table: Any,
    *,
    after: str | int | None,
    limit: int,
    order: str = "desc",
    before: str | int | None = None,
    among: Select[Row] | None = None,
    deletions: Select[Any] | None = None,
    by: str = _CURSOR_FIELD,
) -> tuple[Sequence[Row], bool]:
    """Return the rows of one page and whether there are more. `statement` selects `table` within the caller's project.

    `by` names the column with the time that orders the list.

    With `before` alone the page ends there, and the flag says whether others come before it. A cursor may name a row
    that `statement` no longer selects if `among` selects it, and a deleted row if it is in `deletions` (see `deleted`).
    """
    falling = order == "desc"
    time = getattr(table, by)
    key = tuple_(time, table.id)
    bounded = statement
    known = statement if among is None else among
    if after is not None:
        point = _point(session, known, deletions, time, table, "after", after)
        bounded = bounded.where(key < point if falling else key > point)
    if before is not None:
        point = _point(session, known, deletions, time, table, "before", before)
        bounded = bounded.where(key > point if falling else key < point)
    backwards = before is not None and after is None
    columns = (time, table.id)
    ordering = [column.desc() if falling != backwards else column.asc() for column in columns]
    rows = session.scalars(bounded.order_by(*ordering).limit(limit + 1)).all()
    shown = rows[:limit]
    return list(reversed(shown)) if backwards else shown, len(rows) > limit


def _point(
    session: Session,
    known: Select[Any],
    deletions: Select[Any] | None,
    time: Any,
    table: Any,
    param: str,
    name: str | int,
) -> tuple[float, str | int]:
    anchor = session.execute(known.with_only_columns(time).where(table.id == name)).scalar()
    if anchor is None and deletions is not None:
        anchor = _cursor_of(session.scalar(deletions.where(Audit.target == name)))
    if anchor is None:
        raise InvalidRequest(f"No object with id '{clip(str(name))}'.", param=param, code="invalid_cursor")
    return anchor, name


def deletion_details(call: CallContext, action: str, store: str | None = None) -> Select[Any]:
    """Return the audit details of deletions, which hold each deleted object's cursor for as long as they are stored.

    So a client that deletes what a list shows, page by page, can go on behind it.
    """
    # one object has few rows, an action has many
    ends = select(Audit.details).where(*matching(Audit, {"project_id": call.project_id, "action": action}, indexed=()))
    if store is not None:
        ends = ends.where(Audit.details["store"].as_string() == store)
    return ends.order_by(Audit.id.desc()).limit(1)


def cursor_details(row: Any) -> dict[str, Any]:
    """Return what the audit row of a deletion stores of the row's position in lists."""
    return {_CURSOR_FIELD: row.created_at}


def _cursor_of(details: dict[str, Any] | None) -> float | None:
    return (details or {}).get(_CURSOR_FIELD)


def slice_of(
    objects: Sequence[Mapping[str, Any]],
    show: Callable[[Mapping[str, Any]], Shown],
    *,
    after: str | None,
    limit: int,
    order: str,
) -> Page[Shown]:
    """Return a page of objects in memory, which are in ascending order; only objects of the page are shown."""
    ordered = list(objects) if order == "asc" else list(reversed(objects))
    ids = [object_["id"] for object_ in ordered]
    if after is not None and after not in ids:
        raise InvalidRequest(f"No object with id '{clip(after)}'.", param="after", code="invalid_cursor")
    start = 0 if after is None else ids.index(after) + 1
    shown = ids[start : start + limit]
    first, last = (shown[0], shown[-1]) if shown else (None, None)
    data = [show(object_) for object_ in ordered[start : start + limit]]
    return Page(data=data, first_id=first, last_id=last, has_more=start + limit < len(ids))


def page(rows: Sequence[Row], more: bool, show: Callable[[Row], Shown]) -> Page[Shown]:
    """Return rows as a page, each shown by `show`."""
    ids = [row.id for row in rows]  # type: ignore[attr-defined]
    return Page(
        data=[show(row) for row in rows],
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=more,
    )


def match_metadata(
    statement: Select[Row], metadata: Any, query: Iterable[tuple[str, str]], *, sqlite: bool
) -> Select[Row]:
    """Return `statement` with a condition for each `metadata[...]` of `query`. Raises InvalidRequest."""
    given = list(query)
    texts = bracket_entries(given, "metadata")
    conditions = [_has_entry(metadata, key, text, sqlite=sqlite) for key, text in texts]
    if ("metadata", "null") in given:
        kind = func.json_type(metadata) if sqlite else func.json_typeof(metadata)
        conditions.append(or_(metadata.is_(None), kind == "null"))
    return statement.where(*conditions)


def _has_entry(metadata: Any, key: str, value: str, *, sqlite: bool) -> ColumnElement[bool]:
    if not sqlite:
        return cast("ColumnElement[bool]", metadata.op("->>")(key) == value)
    pairs = func.json_each(metadata).table_valued(
        "key", "value"
    )  # in a JSON path, quotes in a key would have a meaning
    return exists(select(literal(1)).select_from(pairs).where(pairs.c.key == key, pairs.c.value == value))
