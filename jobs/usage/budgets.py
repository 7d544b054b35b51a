"""Budgets: what a project, and the organization (an empty id), may spend in a calendar month in UTC.

    begin ──limit locked, below it──▶ reserved ──usage recorded──▶ usage_change ──the leading dispatcher──▶ spend
      └─ at the limit: a client is refused (429), a job waits (`waiting_for: spend_limit`)

Work may begin while what is spent and what is reserved are together below each limit. Whoever asks holds the row of the
limit locked until its own reservation is committed, so that any number of requests at once passes the limit by one of
them at most: the last that was admitted. A job is locked before the limits, for which others wait.

A request reserves in a row of `reservation`, which ends with its answer, or at `expires_at` where its process died. A
shard needs no such row. While it runs, its own row says what its open lines may cost at most. So whatever ends its
claim ends its reservation, and each segment takes its lines out of it in the transaction that records their usage.

Money moves from left to right, and is read in that order: what moves meanwhile counts twice, and never not at all. A
model without a price costs nothing. Where too much waits to be added up, nothing begins.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Float, SQLColumnExpression, and_, cast, delete, func, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import UNSEEN, WRITE_ROWS, execute_and_count, insert_into
from jobs.errors import DatabaseBusy, SpendLimitReached
from jobs.ledger import audit, ledger, outbox, shards
from jobs.ledger.outbox import SPEND_LIMIT
from jobs.ledger.states import JobState, ShardState
from jobs.ledger.tables import Job, Shard
from jobs.queues import Queue, Task
from jobs.requests.token_estimates import input_tokens
from jobs.usage import minutes
from jobs.usage.prices import Priced, Prices, Resolve
from jobs.usage.tables import Reservation, Spend, SpendLimit, UsageChange

#: `project_id` of what holds for all projects together.
ORGANIZATION: Final = ""
#: Amounts are counted in millionths of a dollar, and limits are written in cents.
MICROS_PER_CENT: Final = 10_000
#: Changes of usage that are read at once, while others wait for the limits.
MAX_CHANGES: Final = 5_000
#: Seconds for which an answered request stays reserved. Its worker records the usage within 5, and has 5 more to write.
RECORDED_SECONDS: Final = 10.0
_CACHED_SECONDS: Final = 2.0
#: Queues whose shards ask no model.
_FREE: Final = (Queue.INGEST, Queue.EVALUATE)


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit (None: there is none), and what counts towards it this month, in millionths of a US dollar."""

    project_id: str
    limit: int | None
    reserved: int
    spent: int

    @property
    def is_exhausted(self) -> bool:
        return self.limit is not None and self.reserved + self.spent >= self.limit


class LimitedProjects:
    """The projects that have a spend limit, as read a moment ago. Usable from any thread."""

    def __init__(self) -> None:
        self._ids = frozenset[str]()
        self._until = float("-inf")

    @property
    def is_stale(self) -> bool:
        return time.monotonic() >= self._until

    def refresh(self, session: Session) -> frozenset[str]:
        """Return the projects, read again where they are stale. Raises DatabaseBusy."""
        if self.is_stale:
            began = time.monotonic()
            self._ids = frozenset(session.scalars(select(SpendLimit.project_id)))
            self._until = began + _CACHED_SECONDS
        return self._ids

    def has(self, project_id: str) -> bool:
        """Return whether a limit holds for the project: its own, or the organization's."""
        return ORGANIZATION in self._ids or project_id in self._ids


def budgets_of(session: Session, project_id: str, prices: Prices, *, lock: bool = False) -> list[Budget]:
    """Return the budget of the organization and that of the project, where they have a limit.

    With `lock` no other transaction that locks them goes on before this one ends.
    """
    ids = {ORGANIZATION, project_id}
    limits = select(SpendLimit.project_id, SpendLimit.cents).where(SpendLimit.project_id.in_(ids))
    limits = limits.order_by(SpendLimit.project_id)
    return _budgets(session, dict(session.execute(limits.with_for_update() if lock else limits).all()), prices)


def budget_of(session: Session, owner: str, resolve: Resolve) -> Budget:
    """Return the budget of a project, or of the organization, whether it has a limit or not."""
    cents = session.scalar(select(SpendLimit.cents).where(SpendLimit.project_id == owner))
    [budget] = _budgets(session, {owner: cents}, Prices(session, resolve))
    return budget


def change_limit(session: Session, owner: str, cents: int | None, *, actor: str, request_id: str | None = None) -> bool:
    """Set the most that a project, or the organization, may spend in a month, or remove it with None.

    Return False where there was nothing to remove.
    """
    if cents is None:
        removed = delete(SpendLimit).where(SpendLimit.project_id == owner)
        if execute_and_count(session, removed, UNSEEN) != 1:
            return False
    else:
        new = insert_into(session, SpendLimit).values(project_id=owner, cents=cents, updated_at=now())
        values = {name: new.excluded[name] for name in ("cents", "updated_at")}
        session.execute(new.on_conflict_do_update(index_elements=["project_id"], set_=values))
    audit.record(
        session,
        actor=actor,
        action="spend_limit.delete" if cents is None else "spend_limit.update",
        target=owner or "organization",
        project_id=owner or None,
        request_id=request_id,
        details=None if cents is None else {"threshold_amount": cents},
    )
    return True


def models_without_price(session: Session, models: Iterable[Priced], resolve: Resolve) -> list[str]:
    """Return the names of models that have no price of input, or none of output, now."""
    prices = Prices(session, resolve)
    return [model.name for model in models if not prices.is_complete(model.name)]


def check(session: Session, project_id: str, prices: Prices) -> None:
    """Lock the limits of a project, and check that it may spend more this month. Raises SpendLimitReached."""
    for budget in budgets_of(session, project_id, prices, lock=True):
        if budget.limit is not None and budget.is_exhausted:
            whose = "project" if budget.project_id else "organization"
            dollars = f"${budget.limit / 100 / MICROS_PER_CENT:,.2f}"
            message = f"This {whose} has reached its spend limit of {dollars} for this month (UTC)."
            raise SpendLimitReached(message, code=f"{whose}_spend_limit_exceeded")


def is_spent(session: Session, project_id: str, resolve: Resolve) -> bool:
    """Return whether a limit of the project is spent, whatever is reserved: what has begun has to rest."""
    budgets = budgets_of(session, project_id, Prices(session, resolve))
    return any(budget.limit is not None and budget.spent >= budget.limit for budget in budgets)


def cost(prices: Prices, model: str, *, input_tokens: int, output_tokens: int) -> int:
    """Return the cost of tokens at this moment's price, in millionths of a dollar; 0 where the model has none."""
    return prices.cost(model, int(now()), {"input": input_tokens, "output": output_tokens}) or 0


# -- requests


def reserve(session: Session, request_id: str, project_id: str, amount: int, expires_at: float, prices: Prices) -> None:
    """Reserve the most that a request may cost. Raises SpendLimitReached."""
    check(session, project_id, prices)
    session.add(Reservation(id=request_id, project_id=project_id, amount=amount, expires_at=expires_at))


def settle(session: Session, request_id: str, amount: int | None = None) -> None:
    """Let the reservation of an answered request end when its usage is recorded, and be `amount`, if that is known."""
    values = {"expires_at": now() + RECORDED_SECONDS, **({} if amount is None else {"amount": amount})}
    session.execute(update(Reservation).where(Reservation.id == request_id).values(values), execution_options=UNSEEN)


def release(session: Session, request_id: str) -> None:
    """End the reservation of a request that cost nothing."""
    session.execute(delete(Reservation).where(Reservation.id == request_id), execution_options=UNSEEN)


def has_expired(session: Session) -> bool:
    """Return whether a reservation has expired."""
    return session.scalar(select(Reservation.id).where(Reservation.expires_at <= now()).limit(1)) is not None


def purge_reservations(session: Session, limit: int = WRITE_ROWS) -> int:
    """Delete reservations that have expired, which count no more; return their number."""
    expired = select(Reservation.id).where(Reservation.expires_at <= now()).limit(limit)
    return execute_and_count(session, delete(Reservation).where(Reservation.id.in_(expired)), UNSEEN)


# -- shards


def hold_back(session: Session, job_id: str, n: int, resolve: Resolve) -> bool:
    """Let the job of a shard wait where its project may spend no more; return whether that is so.

    Otherwise the limits stay locked until the transaction, which claims the shard, has ended.
    """
    its = Shard.job_id == job_id, Shard.n == n, Shard.state == ShardState.PENDING
    if session.scalar(select(Shard.n).join(Job, Job.id == Shard.job_id).where(*its, _IS_PAID)) is None:
        return False
    prices, job = Prices(session, resolve), ledger.lock(session, job_id)
    if job is None or job.state != JobState.RUNNING:
        return False
    try:
        check(session, job.project_id, prices)
    except SpendLimitReached:
        ledger.wait_for(session, job_id, SPEND_LIMIT)
        outbox.unpublish(session, Task.RUN, job_id, n)
        return True
    return False


def jobs_to_release(session: Session, resolve: Resolve, limit: int = WRITE_ROWS) -> list[str]:
    """Return jobs that wait for a spend limit and may go on: the oldest of each project, until what they cost is left.

    Each counts with its next shard, and the last of a project may pass the limit, as shards do that are claimed.
    """
    prices, jobs = Prices(session, resolve), list[str]()
    oldest = select(Job.project_id).where(*_WAITING).group_by(Job.project_id).order_by(func.min(Job.created_at))
    projects = session.scalars(oldest).all()
    ids = {ORGANIZATION, *projects}
    limits = select(SpendLimit.project_id, SpendLimit.cents).where(SpendLimit.project_id.in_(ids))
    budgets = _budgets(session, dict(session.execute(limits).all()), prices) if projects else []
    left = {budget.project_id: (budget.limit or 0) - budget.reserved - budget.spent for budget in budgets}
    for project_id in projects:
        owners = left.keys() & {ORGANIZATION, project_id}
        next_shards = _NEXT_SHARDS.where(Job.project_id == project_id).limit(limit - len(jobs))
        for job_id, model, size, output in session.execute(next_shards).all():
            if any(left[owner] <= 0 for owner in owners):
                break
            jobs.append(job_id)
            for owner in owners:
                left[owner] -= _cost_of_lines(prices, model, size, output)
    return jobs


# -- sums


def _budgets(session: Session, limits: Mapping[str, int | None], prices: Prices) -> list[Budget]:
    """Return the budgets of projects, or of the organization, with limits in cents. Raises DatabaseBusy."""
    if not limits:
        return []
    reserved = _sum_reservations(session, limits.keys(), prices)  # in the order in which money moves
    unfolded = _sum_changes(session, prices)
    for sums in (reserved, unfolded):
        sums[ORGANIZATION] = sums.total()
    month = minutes.month_of(now())
    return [
        Budget(
            owner,
            None if cents is None else cents * MICROS_PER_CENT,
            reserved[owner],
            unfolded[owner] + month_cost(session, owner, month),
        )
        for owner, cents in limits.items()
    ]


def month_cost(session: Session, owner: str, month: int) -> int:
    """Return the cost of a month, as far as it is added up."""
    owners = Spend.project_id != ORGANIZATION if owner == ORGANIZATION else Spend.project_id == owner
    of_month = select(func.coalesce(func.sum(Spend.amount), 0)).where(owners, Spend.month == month)
    return int(session.scalar(of_month) or 0)


def _sum_reservations(session: Session, owners: Collection[str], prices: Prices) -> Counter[str]:
    """Return what is reserved, by project; of these owners, or of all projects where one is the organization."""
    held = select(Reservation.project_id, func.sum(Reservation.amount)).where(Reservation.expires_at > now())
    held = held.where(*_of(owners, Reservation.project_id)).group_by(Reservation.project_id)
    reserved = Counter({row[0]: int(row[1]) for row in session.execute(held)})
    for project_id, model, size, output in session.execute(_RUNNING.where(*_of(owners, Job.project_id))):
        reserved[project_id] += _cost_of_lines(prices, model, size, output)
    return reserved


def _sum_changes(session: Session, prices: Prices) -> Counter[str]:
    """Return the cost, by project, of what was recorded this month and is not added up yet. Raises DatabaseBusy."""
    changes = session.scalars(select(UsageChange.rows).limit(MAX_CHANGES + 1)).all()
    if len(changes) > MAX_CHANGES:
        raise DatabaseBusy("Usage waits to be added up, so nothing can begin where there are spend limits. Ask again.")
    unfolded, month = Counter[str](), minutes.month_of(now())
    for (minute, key), amounts in minutes.merge(changes).items():
        if minute >= month:
            unfolded[key.project_id] += minutes.cost_of(prices, minute, key, amounts) or 0
    return unfolded


def _cost_of_lines(prices: Prices, model: str | None, size: float | None, output: float | None) -> int:
    """Return the most that lines may cost: of so many bytes, and tokens of answers."""
    return cost(prices, model or "", input_tokens=input_tokens(int(size or 0)), output_tokens=int(output or 0))


def _of(owners: Collection[str], project_id: SQLColumnExpression[str]) -> Iterable[ColumnElement[bool]]:
    return () if ORGANIZATION in owners else (project_id.in_(owners),)


_IS_PAID = func.coalesce(Shard.queue, Job.queue, "").not_in(_FREE)
_OPEN_PART = cast(Shard.lines - Shard.done, Float) / func.nullif(Shard.lines, 0)
#: Of a shard: the bytes, and the most tokens of answers, of the lines that no segment covers.
_OPEN = Shard.length * _OPEN_PART, Shard.max_output_tokens * _OPEN_PART
#: The same of running shards, by project and model.
_RUNNING = (
    select(Job.project_id, Job.model, func.sum(_OPEN[0]), func.sum(_OPEN[1]))
    .join(Shard, Shard.job_id == Job.id)
    .where(shards.IS_RUNNING, _IS_PAID)
    .group_by(Job.project_id, Job.model)
)
_WAITING = Job.state == JobState.RUNNING, Job.waiting_for == SPEND_LIMIT
_FIRST_PENDING = (
    select(func.min(Shard.n))
    .where(Shard.job_id == Job.id, Shard.state == ShardState.PENDING)
    .correlate(Job)
    .scalar_subquery()
)
#: The same of the next shard of each job that waits for a spend limit, with the job and its model.
_NEXT_SHARDS = (
    select(Job.id, Job.model, *_OPEN)
    .select_from(Job)
    .outerjoin(Shard, and_(Shard.job_id == Job.id, Shard.n == _FIRST_PENDING))
    .where(*_WAITING)
    .order_by(Job.created_at, Job.id)
)
