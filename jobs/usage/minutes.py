"""Usage by the minute: recorded in the transaction that commits the work, and added up by the leading dispatcher.

    transaction of the work ──insert──▶ usage_change ──fold──▶ usage_minute, with its cost ──▶ spend, by month

A transaction inserts one row of its own, which waits for nobody, as `jobs.ledger.measures` does. So usage is recorded
exactly once, whichever process dies. A fold names the model as the models file does, prices the work at the price of
its minute, and deletes the changes, in one transaction.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final, NamedTuple

from sqlalchemy import Select, delete, event, insert, or_, select, tuple_
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.base import table_of
from jobs.db.engine import UNSEEN, WRITE_ROWS, insert_into
from jobs.fleet.tables import Model
from jobs.ledger import kinds
from jobs.ledger.kinds import SegmentUsage
from jobs.ledger.tables import Job
from jobs.registry.tables import TunedModel
from jobs.requests.endpoints import EMBEDDINGS, SEARCH
from jobs.usage.prices import Prices, Resolve
from jobs.usage.tables import Spend, UsageChange, UsageMinute

#: The `endpoint` of trainings, whose tokens are input tokens.
TRAINING: Final = "/v1/fine_tuning/jobs"
#: The `subject` of answers from the cache, which cost nothing.
CACHE: Final = "cache"
#: The `model` of requests whose name the models file does not have: clients may write any.
OTHER: Final = "other"

#: Before the key of every row.
FIRST: tuple[Any, ...] | None = (0,)

_PENDING: Final = "usage"
_MINUTE: Final = 60
_KEYS_AT_ONCE: Final = 500
_CHANGE: Final = insert(table_of(UsageChange))


class UsageKey(NamedTuple):
    """The owner of a piece of work: the key of a row of `usage_minute`, without its minute."""

    project_id: str
    key_id: str
    model: str
    endpoint: str
    batch: bool = False
    tier: str = "default"
    subject: str = ""


class Amounts(NamedTuple):
    """The sums of a row of `usage_minute`, without its cost."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    device_seconds: float = 0.0

    def plus(self, other: "Amounts") -> "Amounts":
        """Return the sums of both."""
        return Amounts._make(map(sum, zip(self, other, strict=True)))


Sums = dict[tuple[int, UsageKey], Amounts]  # by minute, in unix seconds, and key
_WIDTH: Final = 1 + len(UsageKey._fields)  # of the key in a row of a change
_KEY: Final = tuple(getattr(UsageMinute, name) for name in ("minute", *UsageKey._fields))


def record(session: Session, key: UsageKey, amounts: Amounts, at: float | None = None) -> None:
    """Count work that was done `at` a time in unix seconds, by default now."""
    moment = now() if at is None else at
    add(session.info.setdefault(_PENDING, {}), (minute_of(moment), key), amounts)


def add(sums: Sums, at: tuple[int, UsageKey], amounts: Amounts) -> None:
    """Add amounts to those of a minute and a key."""
    sums[at] = sums.get(at, Amounts()).plus(amounts)


def record_segment(session: Session, job: Job, usage: SegmentUsage) -> None:
    """Count the work of a segment of any kind of job, except searches: `workers.retrieval.search` counts those."""
    if job.endpoint == SEARCH:
        return
    is_batch = kinds.lenient(job.kind).is_batch
    key = UsageKey(job.project_id, job.key_id or "", job.model or "", job.endpoint or EMBEDDINGS, is_batch)
    whole, free = Amounts(**usage.whole), Amounts(**usage.from_cache)
    paid = Amounts._make(count - part for count, part in zip(whole, free, strict=True))
    for its_key, amounts in ((key, paid), (key._replace(subject=CACHE), free)):
        if any(amounts):
            record(session, its_key, amounts, usage.at)


def minute_of(at: float) -> int:
    """Return the beginning of the minute, in unix seconds."""
    return int(at) // _MINUTE * _MINUTE


def month_of(at: float) -> int:
    """Return the beginning of the month in UTC, in unix seconds."""
    return int(datetime.fromtimestamp(at, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp())


@event.listens_for(Session, "before_commit")
def _write(session: Session) -> None:
    pending: Sums | None = session.info.pop(_PENDING, None)
    if pending:
        rows = [[minute, *key, *amounts] for (minute, key), amounts in pending.items()]
        session.connection().execute(_CHANGE, {"rows": rows})


# -- adding up


def has_changes(session: Session) -> bool:
    """Return whether a change waits to be added up."""
    return session.scalar(select(UsageChange.id).limit(1)) is not None


def pending(session: Session, resolve: Resolve) -> Sums:
    """Return the sums of the changes that are not added up yet."""
    return _merge(session, session.scalars(select(UsageChange.rows)), resolve)


def fold(session: Session, resolve: Resolve, limit: int = WRITE_ROWS) -> int:
    """Add the oldest changes to their minutes and to `spend`, up to the one with row `limit`; return their number.

    All who fold, or price rows, lock the oldest changes first: of two processes one waits for the other.
    """
    changes: dict[int, list[Any]] = {}
    left = limit
    for change in session.execute(_oldest(limit)).all():
        changes[change.id] = change.rows
        left -= len(change.rows)
        if left <= 0:
            break
    if not changes:
        return 0
    sums, prices = _merge(session, changes.values(), resolve), Prices(session, resolve)
    minutes = {(row.minute, _key_of(row)): row for row in _rows(session, sums)}
    spent: dict[tuple[str, int], int] = {}
    for (minute, key), amounts in sorted(sums.items()):
        if (row := minutes.get((minute, key))) is None:
            row = UsageMinute(minute=minute, **key._asdict(), **Amounts()._asdict(), cost=None)
            session.add(row)
        month = key.project_id, month_of(minute)
        spent[month] = spent.get(month, 0) + _add(row, key, amounts, prices)
    add_spend(session, spent)
    session.execute(delete(UsageChange).where(UsageChange.id.in_(changes)), execution_options=UNSEEN)
    return len(changes)


def price_rows(
    session: Session, resolve: Resolve, model: str, since: int, after: tuple[Any, ...], limit: int = WRITE_ROWS
) -> tuple[int, tuple[Any, ...] | None]:
    """Price rows of a model, and of those tuned from it, that have no cost: since a minute, and behind the key `after`.

    Return how many have a cost now, and the key of the last row; None where there is no row left.
    """
    session.execute(_oldest(WRITE_ROWS)).all()  # a fold that has read earlier prices commits its rows first
    tuned = select(TunedModel.name).where(TunedModel.base == model)
    its_models = or_(UsageMinute.model == model, UsageMinute.model.in_(tuned))
    unpriced = UsageMinute.cost.is_(None), its_models, UsageMinute.minute >= minute_of(since)
    behind = tuple_(*_KEY[: len(after)]) > after
    rows = select(UsageMinute).where(*unpriced, behind).order_by(*_KEY).limit(limit).with_for_update()
    prices, spent, last = Prices(session, resolve), dict[tuple[str, int], int](), None
    count = 0
    for row in session.scalars(rows).all():
        key = _key_of(row)
        last = row.minute, *key
        row.cost = cost_of(prices, row.minute, key, Amounts(*(getattr(row, name) for name in Amounts._fields)))
        if row.cost is not None:
            count += 1
            month = row.project_id, month_of(row.minute)
            spent[month] = spent.get(month, 0) + row.cost
    add_spend(session, spent)
    return count, last


def add_spend(session: Session, amounts: Mapping[tuple[str, int], int]) -> None:
    """Add amounts in millionths of a US dollar to what projects have spent, by project and month."""
    for (project_id, month), amount in sorted(amounts.items()):
        new = insert_into(session, Spend).values(project_id=project_id, month=month, amount=amount)
        values = {"amount": Spend.amount + new.excluded.amount}
        session.execute(new.on_conflict_do_update(index_elements=["project_id", "month"], set_=values))


def cost_of(prices: Prices, minute: int, key: UsageKey, amounts: Amounts) -> int | None:
    """Return the cost of work in millionths of a US dollar; None where the model has no price."""
    if key.subject == CACHE or not key.model:  # a search by words alone asks no model
        return 0
    if key.endpoint == TRAINING:
        return prices.cost(key.model, minute, {"training": amounts.input_tokens})
    uncached = amounts.input_tokens - amounts.cached_tokens
    tokens = {"input": uncached, "cached": amounts.cached_tokens, "output": amounts.output_tokens}
    return prices.cost(key.model, minute, tokens)


def _add(row: UsageMinute, key: UsageKey, amounts: Amounts, prices: Prices) -> int:
    """Add amounts to a row, and return what its cost grows by: nothing where a price is missing now.

    The new cost is the old one and the difference of two rounded sums: roundings do not add up.
    """
    before = Amounts(*(getattr(row, name) for name in Amounts._fields))
    after, cost = before.plus(amounts), row.cost
    for name, value in after._asdict().items():
        setattr(row, name, value)
    whole = cost_of(prices, row.minute, key, after)
    if whole is None:
        return 0
    growth = whole if cost is None else whole - (cost_of(prices, row.minute, key, before) or 0)
    row.cost = (cost or 0) + growth
    return growth


def _rows(session: Session, sums: Sums) -> Iterator[UsageMinute]:
    keys = sorted((minute, *key) for minute, key in sums)  # the order in which all lock them
    for first in range(0, len(keys), _KEYS_AT_ONCE):
        some = tuple_(*_KEY).in_(keys[first : first + _KEYS_AT_ONCE])
        yield from session.scalars(select(UsageMinute).where(some).order_by(*_KEY).with_for_update())


def _oldest(limit: int) -> Select[int, list[Any]]:
    return select(UsageChange.id, UsageChange.rows).order_by(UsageChange.id).limit(limit).with_for_update()


def _key_of(row: UsageMinute) -> UsageKey:
    return UsageKey(*(getattr(row, name) for name in UsageKey._fields))


def merge(changes: Iterable[Iterable[list[Any]]]) -> Sums:
    """Return the sums of changes, whose models are named as clients named them."""
    sums: Sums = {}
    for row in chain.from_iterable(changes):
        add(sums, (row[0], UsageKey(*row[1:_WIDTH])), Amounts(*row[_WIDTH:]))
    return sums


def _merge(session: Session, changes: Iterable[Iterable[list[Any]]], resolve: Resolve) -> Sums:
    requested = merge(changes)
    names = _names(session, {key.model for _, key in requested}, resolve)
    sums: Sums = {}
    for (minute, key), amounts in requested.items():
        add(sums, (minute, key._replace(model=names[key.model])), amounts)
    return sums


def _names(session: Session, requested: Collection[str], resolve: Resolve) -> dict[str, str]:
    """Return the name of each model: that of a tuned one, else that of the models file, else its own where it is known.

    OTHER stands for models that the deployment does not have.
    """
    models = {name: resolve(name) for name in requested}
    others = [name for name, model in models.items() if model is None]
    known = {"", *session.scalars(select(Model.id).where(Model.id.in_(others)))}
    known.update(session.scalars(select(TunedModel.name).where(TunedModel.name.in_(models))))
    return {name: name if name in known else model.name if model else OTHER for name, model in models.items()}
