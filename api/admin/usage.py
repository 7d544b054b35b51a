"""Usage and costs of the organization in buckets of time, as OpenAI's admin API shows them.

Buckets begin at whole minutes, hours and days in UTC, and those without usage are empty. A page cursor holds the query
and the next bucket: usage that comes in meanwhile moves nothing.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, TypeVar

from fastapi import Depends, Query, Request
from pydantic import BaseModel

from api.admin.key_ids import parse_id, show_id
from api.admin.lists import MAX_VALUES, read_values
from api.deps import Admin, AdminContext
from api.http.bodies import resource
from jobs.clock import now
from jobs.errors import InvalidRequest
from jobs.requests.endpoints import BERTSCORE, CHAT, COMPLETIONS, EMBEDDINGS, LIKELIHOOD, RERANK, RESPONSES, SEARCH
from jobs.usage import reports
from jobs.usage.reports import USER, UsageCell, UsageQuery, UsageTotal

router = resource("Usage", area="usage", admin=True)

Result = TypeVar("Result", bound=BaseModel)
_MICROS: Final = 1_000_000
_MAX_TIME: Final = 1 << 36

# -- answers


class KeyedResult(BaseModel):
    """The dimensions of most results. One that the query does not group by is null."""

    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None


class CompletionsUsage(KeyedResult):
    """The usage of chats, completions and responses. `input_tokens` includes the cached ones."""

    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    input_tokens: int
    output_tokens: int
    num_model_requests: int
    input_cached_tokens: int
    input_uncached_tokens: int
    input_cache_write_tokens: int = 0
    input_text_tokens: int
    input_cached_text_tokens: int
    output_text_tokens: int
    input_audio_tokens: int | None = None
    input_image_tokens: int | None = None
    input_cached_audio_tokens: int | None = None
    input_cached_image_tokens: int | None = None
    output_audio_tokens: int | None = None
    output_image_tokens: int | None = None
    batch: bool | None = None
    service_tier: str | None = None
    api_source: str | None = None


class EmbeddingsUsage(KeyedResult):
    """The usage of embeddings and rankings."""

    object: Literal["organization.usage.embeddings.result"] = "organization.usage.embeddings.result"
    input_tokens: int
    num_model_requests: int


class FileSearchUsage(BaseModel):
    """The searches of vector stores."""

    object: Literal["organization.usage.file_searches.result"] = "organization.usage.file_searches.result"
    num_requests: int
    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    vector_store_id: str | None = None


class VectorStoresUsage(BaseModel):
    """The bytes of vector stores, as sampled once a day."""

    object: Literal["organization.usage.vector_stores.result"] = "organization.usage.vector_stores.result"
    usage_bytes: int
    project_id: str | None = None


class UnservedUsage(BaseModel):
    """The usage of what this deployment does not serve: there is none."""


class CostAmount(BaseModel):
    """A number of US dollars."""

    value: float
    currency: Literal["usd"] = "usd"


class CostResult(BaseModel):
    """The cost of work; without an `amount` where no model has a price. A `line_item` is a model."""

    object: Literal["organization.costs.result"] = "organization.costs.result"
    amount: CostAmount | None
    line_item: str | None = None
    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    api_source: str | None = None
    quantity: int | None = None
    quantity_unit: Literal["tokens"] | None = None


class UsageBucket(BaseModel, Generic[Result]):
    """The results from `start_time` until before `end_time`, in unix seconds."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[Result]


class BucketPage(BaseModel, Generic[Result]):
    """Buckets, the oldest first. `next_page` is the `page` of the next ones; null on the last page."""

    object: Literal["page"] = "page"
    data: list[UsageBucket[Result]]
    has_more: bool
    next_page: str | None


def _completions(total: UsageTotal) -> dict[str, Any]:
    _, given, cached, made, _, _ = total.amounts
    return {
        "input_tokens": given,
        "output_tokens": made,
        "num_model_requests": total.amounts.requests,
        "input_cached_tokens": cached,
        "input_uncached_tokens": given - cached,
        "input_text_tokens": given - cached,
        "input_cached_text_tokens": cached,
        "output_text_tokens": made,
    }


def _embeddings(total: UsageTotal) -> dict[str, Any]:
    return {"input_tokens": total.amounts.input_tokens, "num_model_requests": total.amounts.requests}


def _searches(total: UsageTotal) -> dict[str, Any]:
    return {"num_requests": total.amounts.requests}


def _cost(total: UsageTotal) -> dict[str, Any]:
    return {"amount": None if total.cost is None else CostAmount(value=total.cost / _MICROS)}


# -- kinds of usage


class BucketWidth(NamedTuple):
    """A length of buckets in seconds, and how many of them a page has by default and at most."""

    seconds: int
    default: int
    limit: int


_WIDTHS: Final = {"1m": BucketWidth(60, 60, 1440), "1h": BucketWidth(3600, 24, 168), "1d": BucketWidth(86_400, 7, 31)}
_DAYS: Final = {"1d": BucketWidth(86_400, 7, 180)}

#: The dimensions of `jobs.usage.reports` by the names that clients group by; None: always null.
_DIMENSIONS: Final[Mapping[str, str | None]] = {
    "project_id": "project_id",
    "user_id": USER,
    "api_key_id": "key_id",
    "model": "model",
    "line_item": "model",
    "batch": "batch",
    "service_tier": "tier",
    "vector_store_id": "subject",
    "api_source": None,
    "size": None,
    "source": None,
    "context_level": None,
}
#: The names of filters by the dimension that they select.
_FILTERS: Final = {
    "project_ids": "project_id",
    "user_ids": "user_id",
    "api_key_ids": "api_key_id",
    "models": "model",
    "line_items": "line_item",
    "vector_store_ids": "vector_store_id",
    "sizes": "size",
    "sources": "source",
    "context_levels": "context_level",
}
_OWNERS: Final = ("project_id", "user_id", "api_key_id")
_MODELS: Final = (*_OWNERS, "model")
_TIERS: Final = (*_MODELS, "batch", "service_tier", "api_source")


@dataclass(frozen=True, slots=True)
class UsageKind:
    """A kind of usage, as the table below lists it."""

    path: str
    """The path below `/organization`."""

    result: type[BaseModel]
    dimensions: tuple[str, ...]
    """The names that clients may group by and filter by."""

    show: Callable[[UsageTotal], dict[str, Any]] | None = None
    """Return the sums of a result; None: they are not from `usage_minute`."""

    endpoints: tuple[str, ...] = ()
    """The endpoints that count; all of them without any."""

    widths: Mapping[str, BucketWidth] = field(default_factory=lambda: _WIDTHS)


_STORED: Final = UsageKind("usage/vector_stores", VectorStoresUsage, ("project_id",))
_SEARCHED: Final = UsageKind(
    "usage/file_search_calls", FileSearchUsage, (*_OWNERS, "vector_store_id"), _searches, (SEARCH,)
)
_COSTS: Final = UsageKind("costs", CostResult, (*_OWNERS, "line_item", "api_source"), _cost, widths=_DAYS)
KINDS: Final = (
    UsageKind("usage/completions", CompletionsUsage, _TIERS, _completions, (CHAT, COMPLETIONS, RESPONSES, LIKELIHOOD)),
    UsageKind("usage/embeddings", EmbeddingsUsage, _MODELS, _embeddings, (EMBEDDINGS, RERANK, BERTSCORE)),
    _SEARCHED,
    _STORED,
    _COSTS,
    UsageKind("usage/moderations", UnservedUsage, _MODELS),
    UsageKind("usage/decisions", UnservedUsage, _TIERS),
    UsageKind("usage/images", UnservedUsage, (*_MODELS, "size", "source")),
    UsageKind("usage/audio_speeches", UnservedUsage, _MODELS),
    UsageKind("usage/audio_transcriptions", UnservedUsage, _MODELS),
    UsageKind("usage/code_interpreter_sessions", UnservedUsage, ("project_id",)),
    UsageKind("usage/web_search_calls", UnservedUsage, (*_MODELS, "context_level", "api_source")),
)

# -- queries

Values = Annotated[list[str] | None, Query(max_length=MAX_VALUES)]
Time = Annotated[int, Query(ge=0, le=_MAX_TIME, description="In unix seconds.")]


@dataclass(frozen=True, slots=True)
class BucketQuery:
    """The query of all kinds of usage. A list may come as `x=a&x=b`, as `x[]=a&x[]=b`, and as `x=a,b`."""

    request: Request
    start_time: Time
    end_time: Annotated[int | None, Query(ge=0, le=_MAX_TIME, description="In unix seconds; by default now.")] = None
    bucket_width: Literal["1m", "1h", "1d"] = "1d"
    limit: Annotated[int | None, Query(ge=1, description="Buckets on a page.")] = None
    page: Annotated[str | None, Query(max_length=512, description="The `next_page` of the page before.")] = None
    group_by: Values = None
    project_ids: Values = None
    user_ids: Values = None
    api_key_ids: Values = None
    models: Values = None
    line_items: Values = None
    vector_store_ids: Values = None
    sizes: Values = None
    sources: Values = None
    context_levels: Values = None
    batch: bool | None = None


Buckets = Annotated[BucketQuery, Depends()]


def _answer(kind: UsageKind, call: AdminContext, query: BucketQuery) -> BucketPage[Any]:
    """Return one page of a kind of usage. Raises InvalidRequest."""
    width, count = _width(kind, query)
    names, filters = _dimensions(kind, query)
    _check_times(query)
    digest = _digest(kind, query, names, filters)
    start = query.start_time // width.seconds * width.seconds
    end = int(now()) + 1 if query.end_time is None else query.end_time
    if query.page is not None:
        start = _position(query.page, digest, range(start, end, width.seconds))
    last = min(-(-end // width.seconds) * width.seconds, start + count * width.seconds)
    dimensions = tuple(name for name in names if _DIMENSIONS[name])
    columns = tuple(_DIMENSIONS[name] or "" for name in dimensions)
    usage_query = UsageQuery(start, last, width.seconds, kind.endpoints, columns, filters, kind is _SEARCHED)
    cells, last = _cells(kind, call, usage_query)
    results: dict[int, list[BaseModel]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.bucket, [str(value) for value in cell.values])):
        results.setdefault(cell.bucket, []).append(_result(kind, dimensions, cell, cells[cell]))
    data: list[UsageBucket[Any]] = [
        UsageBucket(start_time=at, end_time=at + width.seconds, results=results.get(at, []))
        for at in range(start, last, width.seconds)
    ]
    following = _cursor(last, digest) if last < end else None
    return BucketPage(data=data, has_more=following is not None, next_page=following)


def _cells(kind: UsageKind, call: AdminContext, query: UsageQuery) -> tuple[Mapping[UsageCell, Any], int]:
    """Return the sums by cell, and the end of their buckets. Raises InvalidRequest."""
    if kind.show is None and kind is not _STORED:
        return {}, query.end
    cells: Mapping[UsageCell, Any]
    with call.db.snapshot() as session:
        if kind is _STORED:
            cells, end = reports.bytes_in_stores(session, query)
        else:
            cells, end = reports.report(session, query, call.services.registry().price_source)
    if end <= query.start:
        raise _invalid("group_by", "one bucket has too many results. Use shorter buckets, or filters.")
    return cells, end


def _result(kind: UsageKind, dimensions: tuple[str, ...], cell: UsageCell, total: Any) -> BaseModel:
    values = dict(zip(dimensions, cell.values, strict=True))
    if key_id := values.get("api_key_id"):
        values["api_key_id"] = show_id(key_id)
    if kind.show is None:
        return kind.result(**values, usage_bytes=total)
    if kind is _COSTS and values.get("line_item"):
        values |= {"quantity": total.amounts.input_tokens + total.amounts.output_tokens, "quantity_unit": "tokens"}
    return kind.result(**values, **kind.show(total))


def _width(kind: UsageKind, query: BucketQuery) -> tuple[BucketWidth, int]:
    width = kind.widths.get(query.bucket_width)
    if width is None:
        raise _invalid("bucket_width", f"here it is {' or '.join(kind.widths)}.")
    count = query.limit or width.default
    if count > width.limit:
        raise _invalid("limit", f"at most {width.limit} buckets of {query.bucket_width} are on a page.")
    return width, count


def _dimensions(kind: UsageKind, query: BucketQuery) -> tuple[list[str], dict[str, Any]]:
    """Return what the query groups by, and its filters by dimension of `usage_minute`. Raises InvalidRequest."""
    names = read_values(query.request, "group_by")
    for name in names:
        if name not in kind.dimensions:
            raise _invalid("group_by", f"here results are grouped by {', '.join(kind.dimensions)}.")
    filters: dict[str, Any] = {}
    for param, name in _FILTERS.items():
        values = read_values(query.request, param)
        if values and name not in kind.dimensions:
            raise _invalid(param, "it selects nothing here.")
        if values and (dimension := _DIMENSIONS[name]):
            filters[dimension] = list(map(parse_id, values)) if name == "api_key_id" else values
    if query.batch is not None:
        if "batch" not in kind.dimensions:
            raise _invalid("batch", "it selects nothing here.")
        filters["batch"] = [query.batch]
    return names, filters


def _check_times(query: BucketQuery) -> None:
    if query.start_time > now():
        raise _invalid("start_time", "it is in the future.")
    if query.end_time is not None and query.end_time <= query.start_time:
        raise _invalid("end_time", "it is not after 'start_time'.")


def _digest(kind: UsageKind, query: BucketQuery, names: list[str], filters: Mapping[str, Any]) -> str:
    """Return what tells a query from others, whatever the page and its length."""
    parts = [kind.path, query.start_time, query.end_time, query.bucket_width, names, sorted(filters.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _cursor(position: int, digest: str) -> str:
    return base64.urlsafe_b64encode(f"{digest}{position}".encode()).decode()


def _position(page: str, digest: str, buckets: range) -> int:
    """Return the first bucket of a page. Raises InvalidRequest for a cursor that another query has made."""
    try:
        text = base64.b64decode(page, b"-_", validate=True).decode()
        position = int(text.removeprefix(digest))
    except (binascii.Error, ValueError):
        position = -1
    if position not in buckets:
        raise _invalid("page", "it is not the 'next_page' of this query.")
    return position


def _invalid(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': {reason}", param=param, code="invalid_value")


def _route(kind: UsageKind) -> Callable[..., BucketPage[Any]]:
    def retrieve(call: Admin, query: Buckets) -> BucketPage[Any]:
        return _answer(kind, call, query)

    noun = kind.path.rpartition("/")[2]
    retrieve.__name__ = f"retrieve_{noun}"
    retrieve.__doc__ = (
        f"Return the usage of {noun.replace('_', ' ')} in buckets of time."
        if kind is not _COSTS
        else ("Return what the usage costs, in buckets of days.")
    )
    return retrieve


for _kind in KINDS:
    _page: Any = BucketPage  # a type checker takes no variable as the parameter
    _path = f"/organization/{_kind.path}"
    router.add_api_route(_path, _route(_kind), methods=["GET"], response_model=_page[_kind.result])
