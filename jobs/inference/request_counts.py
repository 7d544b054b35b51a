"""Interactive requests by minute, project and model: their times, their tokens and their errors, as clients see them.

    each web process ──every 10 s──▶ request_minute ──▶ summaries by model of GET /v1/throughput

                                  └─▶ shadow_minute ──▶ counts of the shadows of GET /v1/aliases

A value is counted in a bucket of its measure, as Prometheus does: percentiles are estimated from the buckets. The web
process that dies loses the counts of its last ten seconds. Usage, which is exact, is that of `jobs.usage.minutes`.
"""

import operator
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.db.base import Base
from jobs.db.engine import WRITE_ROWS, insert_into
from jobs.inference.tables import RequestMinute, ShadowMinute

#: Upper bounds of the buckets of times, in seconds, and of speeds, in output tokens a second.
SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
SPEEDS: Final = (1, 2, 5, 10, 20, 35, 50, 75, 100, 150, 200, 400, 1000)
BOUNDS: Final[Mapping[str, Sequence[float]]] = {"first_token": SECONDS, "duration": SECONDS, "speed": SPEEDS}
#: Measures that are counted by a word: tokens by their type, errors by their code.
TOKENS: Final = "tokens"
TOKEN_TYPES: Final = ("input", "cached", "output", "reasoning")
ERRORS: Final = "errors"


class RequestKey(NamedTuple):
    """The key of a row of `request_minute`. `bucket` is the index of a bucket, or a word."""

    project_id: str
    minute: int
    model: str
    measure: str
    bucket: str


class ShadowKey(NamedTuple):
    """The key of a row of `shadow_minute`: `model` is asked what the clients of `alias` have asked."""

    project_id: str
    alias: str
    model: str
    minute: int


class ShadowCounts(NamedTuple):
    """Count what became of requests for a shadow.

    `requests` for the alias were answered, and the shadow was to be asked too. A worker has taken those `sent`; those
    `dropped` were beyond a bound; those `failed` met no worker or an error. Of those `compared` the texts of `equal`
    are the same, and `length_ratio` is the sum of their lengths by those of the answers that clients got.
    """

    requests: int = 0
    sent: int = 0
    dropped: int = 0
    failed: int = 0
    compared: int = 0
    equal: int = 0
    length_ratio: float = 0.0


#: By a key of a request, the number of values, and their sum; by one of a shadow, `ShadowCounts`. No two are equal.
Counts = dict[RequestKey | ShadowKey, tuple[float, ...]]
_COLUMNS: Final[Sequence[tuple[type[RequestKey] | type[ShadowKey], type[Base], Sequence[str]]]] = (
    (RequestKey, RequestMinute, ("count", "total")),
    (ShadowKey, ShadowMinute, ShadowCounts._fields),
)


def bucket_of(measure: str, value: float) -> str:
    """Return the bucket of a value; values beyond the last bound have one of their own."""
    return str(bisect_left(BOUNDS[measure], value))


def add(counts: Counts, key: RequestKey | ShadowKey, values: tuple[float, ...]) -> None:
    """Add values to those counted under a key."""
    before = counts.get(key)
    counts[key] = values if before is None else tuple(map(operator.add, before, values))


def write(session: Session, counts: Counts) -> None:
    """Add counts to their rows, in the order of their keys: two processes never wait for each other."""
    for kind, table, names in _COLUMNS:
        keys = sorted(key for key in counts if isinstance(key, kind))
        rows = [{**key._asdict(), **dict(zip(names, counts[key], strict=True))} for key in keys]
        for start in range(0, len(rows), WRITE_ROWS):
            new = insert_into(session, table).values(rows[start : start + WRITE_ROWS])
            sums = {name: getattr(table, name) + new.excluded[name] for name in names}
            session.execute(new.on_conflict_do_update(index_elements=list(kind._fields), set_=sums))


@dataclass(slots=True)
class Distribution:
    """The values of a measure: how many, their sum, and their number by bucket."""

    bounds: Sequence[float]
    count: int = 0
    total: float = 0.0
    buckets: dict[int, int] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """Return the value below which a share of the values lies, estimated within its bucket as on a line.

        Values beyond the last bound count as that bound, as in Prometheus' `histogram_quantile`.
        """
        rank, below = share * self.count, 0
        for index, (lower, upper) in enumerate(pairwise((0.0, *self.bounds))):
            inside = self.buckets.get(index, 0)
            if inside and below + inside >= rank:
                return lower + (upper - lower) * (rank - below) / inside
            below += inside
        return self.bounds[-1] if self.count else None


@dataclass(slots=True)
class ModelRequests:
    """The interactive requests for one model in a span of time. An answer of the cache counts as any other."""

    distributions: dict[str, Distribution]
    tokens: dict[str, int]
    errors: dict[str, int]

    @property
    def requests(self) -> int:
        return self.distributions["duration"].count + sum(self.errors.values())


def summarize(
    session: Session, project_id: str, start: int, end: int, model: str | None = None
) -> dict[str, ModelRequests]:
    """Return a project's requests by model, from one minute until before another, in unix seconds."""
    columns = RequestMinute.model, RequestMinute.measure, RequestMinute.bucket
    sums = func.sum(RequestMinute.count), func.sum(RequestMinute.total)
    span = RequestMinute.project_id == project_id, RequestMinute.minute >= start, RequestMinute.minute < end
    statement = select(*columns, *sums).where(*span).group_by(*columns).order_by(*columns)
    if model is not None:
        statement = statement.where(RequestMinute.model == model)
    by_model = defaultdict[str, ModelRequests](
        lambda: ModelRequests({measure: Distribution(bounds) for measure, bounds in BOUNDS.items()}, {}, {})
    )
    for name, measure, bucket, count, total in session.execute(statement):
        requests = by_model[name]
        if measure in BOUNDS:
            values = requests.distributions[measure]
            values.count += int(count)
            values.total += float(total)
            values.buckets[int(bucket)] = int(count)
        else:
            (requests.tokens if measure == TOKENS else requests.errors)[bucket] = int(count)
    return dict(by_model)


def summarize_shadows(
    session: Session, project_id: str, names: Collection[str], start: int
) -> dict[tuple[str, str], ShadowCounts]:
    """Return the counts of the shadows of aliases, from a minute on, by the names of the alias and the model."""
    by = ShadowMinute.alias, ShadowMinute.model
    sums = (func.sum(getattr(ShadowMinute, name)) for name in ShadowCounts._fields)
    rows = select(*by, *sums).where(ShadowMinute.project_id == project_id, ShadowMinute.alias.in_(names))
    counted = session.execute(rows.where(ShadowMinute.minute >= start).group_by(*by))
    return {(alias, model): ShadowCounts._make((*map(int, counts), ratio)) for alias, model, *counts, ratio in counted}
