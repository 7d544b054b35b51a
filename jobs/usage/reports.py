"""Sums of usage in buckets of time, of minutes that are added up and of changes that are not yet.

A query reads one range of one index of `usage_minute`: that of the minutes, or of a project and the minutes.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from sqlalchemy import Select, func, literal, select
from sqlalchemy.orm import Session

from jobs.db.engine import page_ids
from jobs.errors import Unavailable
from jobs.security.tables import ApiKey
from jobs.usage import minutes
from jobs.usage.minutes import Amounts
from jobs.usage.prices import Prices, Resolve
from jobs.usage.tables import StoredBytesDay, UsageChange, UsageMinute

DAY: Final = 86_400
#: A dimension that stands for the owner of `key_id`.
USER: Final = "user_id"
#: Changes that are not added up and are read by one report, and results that it returns.
MAX_CHANGES: Final = 5_000
MAX_RESULTS: Final = 20_000

_AMOUNTS: Final = tuple(getattr(UsageMinute, name) for name in Amounts._fields)


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """A query of usage from `start` until before `end`, in buckets of `step` seconds from the beginning of the epoch.

    `group_by` and `filters` name dimensions: fields of a `UsageKey`, or USER. A `step` of 0 makes one bucket.
    """

    start: int
    end: int
    step: int
    endpoints: Collection[str] = ()
    group_by: tuple[str, ...] = ()
    filters: Mapping[str, Collection[Any]] = field(default_factory=dict)
    has_subject: bool = False  # only what has one

    @property
    def has_users(self) -> bool:
        """Return whether the query asks for owners of keys."""
        return USER in self.group_by or USER in self.filters

    def bucket_of(self, minute: int) -> int:
        """Return the beginning of the bucket of a minute."""
        return minute - minute % self.step if self.step else self.start


class UsageCell(NamedTuple):
    """A bucket and a value of each dimension that a query groups by."""

    bucket: int
    values: tuple[Any, ...]


@dataclass(slots=True)
class UsageTotal:
    """The sums of a cell. `cost` is in millionths of a US dollar; None where nothing has a price."""

    amounts: Amounts = Amounts()  # noqa: RUF009 (a tuple)
    cost: int | None = None

    def add(self, amounts: Amounts, cost: int | None) -> None:
        self.amounts = self.amounts.plus(amounts)
        self.cost = self.cost if cost is None else cost + (self.cost or 0)


class UsageReport(NamedTuple):
    """The sums of each cell, of buckets that begin before `end`. It is before the end of a query with many results."""

    cells: dict[UsageCell, UsageTotal]
    end: int


def report(session: Session, query: UsageQuery, resolve: Resolve) -> UsageReport:
    """Return the sums of a query. The session sees one snapshot of the database.

    Raises: Unavailable, where more changes wait to be added up than a report reads.
    """
    if session.scalar(select(UsageChange.id).order_by(UsageChange.id).offset(MAX_CHANGES).limit(1)) is not None:
        raise Unavailable(
            "Much usage waits to be added up. Ask later; `nightmill doctor` says whether a dispatcher runs."
        )
    rows = list(session.execute(statement_of(query)))
    if len(rows) > MAX_RESULTS:
        query = replace(query, end=int(rows.pop()[0]))
    result: dict[UsageCell, UsageTotal] = {}
    for bucket, *rest in rows:
        if bucket >= query.end:
            continue
        values, sums = rest[: len(query.group_by)], rest[len(query.group_by) : -1]
        cell = UsageCell(int(bucket), _cell_values(values))
        result.setdefault(cell, UsageTotal()).add(Amounts._make(map(_number, sums)), _cost(rest[-1]))
    prices, pending = Prices(session, resolve), minutes.pending(session, resolve)
    owners = _owners_of(session, {key.key_id for _, key in pending}) if pending and query.has_users else {}
    for (minute, key), amounts in pending.items():
        fields = {**key._asdict(), USER: owners.get(key.key_id)}
        if _matches(query, minute, fields):
            cell = UsageCell(query.bucket_of(minute), _cell_values(fields[name] for name in query.group_by))
            result.setdefault(cell, UsageTotal()).add(amounts, minutes.cost_of(prices, minute, key, amounts))
    return UsageReport(result, query.end)


def bytes_in_stores(session: Session, query: UsageQuery) -> tuple[dict[UsageCell, int], int]:
    """Return the bytes of vector stores in the buckets in which they were sampled, and the end of the buckets.

    It is before the end of a query with many results.
    """
    columns = [getattr(StoredBytesDay, name) for name in query.group_by]
    sums = select(StoredBytesDay.day, *columns, func.sum(StoredBytesDay.bytes)).group_by(StoredBytesDay.day, *columns)
    sums = sums.where(StoredBytesDay.day >= query.start, StoredBytesDay.day < query.end)
    if projects := query.filters.get("project_id"):
        sums = sums.where(StoredBytesDay.project_id.in_(projects))
    rows = list(session.execute(sums.order_by(StoredBytesDay.day).limit(MAX_RESULTS + 1)))
    end = rows[-1][0] if len(rows) > MAX_RESULTS else query.end
    cells = {UsageCell(query.bucket_of(day), tuple(values)): int(size) for day, *values, size in rows if day < end}
    return cells, end


def statement_of(query: UsageQuery) -> Select[*tuple[Any, ...]]:
    """Return the statement of the sums of a query, of the minutes that are added up."""
    bucket = (UsageMinute.minute - UsageMinute.minute % query.step) if query.step else literal(query.start)
    dimensions = [ApiKey.owner_id if name == USER else getattr(UsageMinute, name) for name in query.group_by]
    grouped = [*([bucket] if query.step else []), *dimensions]
    sums = (func.sum(column) for column in (*_AMOUNTS, UsageMinute.cost))
    statement = select(bucket, *dimensions, *sums).select_from(UsageMinute)
    if USER in query.group_by:
        statement = statement.outerjoin(ApiKey, ApiKey.id == UsageMinute.key_id)
    statement = statement.where(UsageMinute.minute >= query.start, UsageMinute.minute < query.end)
    if query.endpoints:
        statement = statement.where(UsageMinute.endpoint.in_(query.endpoints))
    if query.has_subject:
        statement = statement.where(UsageMinute.subject != "")
    for name, values in query.filters.items():
        if name == USER:
            owned = select(ApiKey.id).where(ApiKey.owner_id.in_(values))
            statement = statement.where(UsageMinute.key_id.in_(owned))
        else:
            column, chosen = getattr(UsageMinute, name), list(values)
            statement = statement.where(column == chosen[0] if len(chosen) == 1 else column.in_(chosen))
    return statement.group_by(*grouped).order_by(*grouped[:1]).limit(MAX_RESULTS + 1)


def _matches(query: UsageQuery, minute: int, values: Mapping[str, Any]) -> bool:
    if not query.start <= minute < query.end or (query.has_subject and not values["subject"]):
        return False
    if query.endpoints and values["endpoint"] not in query.endpoints:
        return False
    return all(values[name] in accepted for name, accepted in query.filters.items())


def _cell_values(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return the values of a cell, with None for empty ones."""
    return tuple(None if value == "" else value for value in values)


def _owners_of(session: Session, key_ids: Iterable[str]) -> dict[str, str | None]:
    """Return the owner of each key."""
    owners: dict[str, str | None] = {}
    for ids in page_ids(key_ids):
        owners.update(session.execute(select(ApiKey.id, ApiKey.owner_id).where(ApiKey.id.in_(ids))).all())
    return owners


def _number(value: Any) -> Any:
    return value if isinstance(value, float) else int(value or 0)


def _cost(value: Any) -> int | None:
    return None if value is None else int(value)
