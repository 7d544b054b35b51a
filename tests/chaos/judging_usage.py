"""Judge, after a run, the batches of projects with limits, and the usage, the costs and the limits of all projects."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

import jobs.known_kinds  # noqa: F401 (fills the table of kinds)
from jobs.clock import now
from jobs.ledger import kinds
from jobs.ledger.tables import TOKENS, Job, Segment
from jobs.requests.endpoints import EMBEDDINGS, SEARCH
from jobs.usage import budgets, minutes
from jobs.usage.tables import Reservation, Spend, UsageMinute
from tests.chaos.judging import await_jobs, opened
from tests.chaos.limited_projects import METERED, RATE, LimitedProjects, days_around
from tests.support import oracle, usage_oracle
from tests.support.system import CACHED_MODEL, MODEL, SCALED, wait_for
from tests.support.usage_oracle import LimitedBatch, Tokens, UsageRow, sum_tokens, tokens_of

if TYPE_CHECKING:
    from tests.chaos.campaign import Campaign

#: Until usage is added up and reservations of answered requests are purged.
_RECORD_SECONDS = budgets.RECORDED_SECONDS + 30.0
#: What a worker that is killed loses of the usage of interactive requests, in seconds.
_LOST_SECONDS = 10.0
_FAULTS_TO_REACH_LIMITS = 5
#: The time to answer an interactive request, and how much longer it stays reserved.
_DEADLINE_SECONDS = 660.0
_IS_BATCH = Job.kind.in_(kinds.names(lambda kind: kind.is_batch))


def await_limited(campaign: "Campaign") -> None:
    """I1: every batch under a limit ends: its limit is raised, or its key is revoked."""
    if (limited := campaign.load.limited) is None:
        return
    for clients in (limited.budgeted, limited.revoked):
        await_jobs(campaign, clients, "not ended in time under a limit")


def judge_limited(campaign: "Campaign", limited: LimitedProjects) -> None:
    """Judge all that can be asked of limits, usage and costs."""
    blame = campaign.journal.violation
    for clients in (limited.budgeted, limited.revoked):
        blame(*oracle.once(clients.client.sdk, clients.jobs))
        blame(*(fault for batch in clients.jobs if batch.ended for fault in _batch_faults(clients.client.sdk, batch)))
    blame(*_unmet_limits(campaign, limited))
    limited.budgeted.sample()
    shard_lines = int(SCALED["NIGHTMILL_SHARD_LINES"])
    bound = max((usage_oracle.shard_cost(batch, shard_lines) for batch in limited.budgeted.jobs), default=0)
    blame(*usage_oracle.excess_spending(limited.budgeted.samples, bound))
    blame(*_excess_answers(campaign, limited))
    _judge_records(campaign, limited)
    verdict = campaign.system.cli("usage", "verify")
    if verdict.returncode:
        blame(f"usage: {verdict.stdout} {verdict.stderr}")
    blame(*_differences_through_sdk(limited))


def _batch_faults(client: Any, batch: LimitedBatch) -> Iterator[str]:
    result = oracle.fetch(client, batch.id)
    for check in (oracle.ended, oracle.complete, oracle.counted):
        yield from check(batch, result)
    errors = (result.batch.errors.data or []) if result.batch.errors else []
    yield from usage_oracle.wrong_cancellation(batch, [error.code for error in errors])


def _unmet_limits(campaign: "Campaign", limited: LimitedProjects) -> Iterator[str]:
    """Yield the limits that the load never met: the run says nothing about those."""
    if len(campaign.struck) < _FAULTS_TO_REACH_LIMITS:
        return
    met = {
        "spend limit": any(spent >= limit for limit, spent in limited.budgeted.samples),
        "rate limit": limited.metered.refusals,
        "revoked key": limited.revoked.keys,
    }
    yield from (f"no client met a {name}" for name, is_met in met.items() if not is_met)


def _excess_answers(campaign: "Campaign", limited: LimitedProjects) -> Iterator[str]:
    metered = limited.metered
    if metered.answers:
        resets = sum(fault.name.startswith(("broker", "supervisor", "guard")) for fault in campaign.struck)
        seconds = metered.answers[-1].at - metered.began
        yield from usage_oracle.excess_answers(len(metered.answers), seconds, RATE, resets)


def _differences_through_sdk(limited: LimitedProjects) -> Iterator[str]:
    """Compare the usage that the admin API reports with that of the batches that it lists."""
    budgeted = limited.budgeted
    page = limited.admin.organization.usage.completions(**days_around(), project_ids=[budgeted.project.id])
    results: list[Any] = [result for bucket in page.data for result in bucket.results]
    reported = [Tokens(result.input_tokens, 0, result.output_tokens) for result in results]
    usages = [batch.usage for batch in budgeted.client.sdk.batches.list(limit=100)]
    listed = [Tokens(usage.input_tokens, 0, usage.output_tokens) for usage in usages if usage]
    owner = "the budgeted project in the API"
    yield from usage_oracle.usage_differences({owner: sum_tokens(listed)}, {owner: sum_tokens(reported)})


# -- from inside


def _judge_records(campaign: "Campaign", limited: LimitedProjects) -> None:
    blame = campaign.journal.violation
    with opened(campaign) as stores:
        try:
            is_recorded = lambda: not _has_pending(stores.db)  # noqa: E731
            seconds = _RECORD_SECONDS * campaign.patience
            wait_for(is_recorded, seconds, "usage is added up, and reservations end", every=0.5)
        except TimeoutError as error:
            blame(str(error))
        with stores.db.snapshot() as session:
            rows = _usage_rows(session)
            blame(*record_faults(session))
            reserved = budgets.budget_of(session, limited.budgeted.project.id, lambda _: None).reserved
            requests = session.scalar(select(func.count()).select_from(Reservation).where(*_unanswered())) or 0
            blame(*usage_oracle.leftover_reservations(reserved, requests, len(campaign.struck)))
    blame(*_usage_outside(campaign, limited, rows))


def record_faults(session: Session) -> Iterator[str]:
    """Yield what is wrong with the usage and the costs of a database in which nothing is pending."""
    yield from usage_oracle.usage_differences(_job_tokens(session), _batch_usage(session))
    yield from usage_oracle.missing_usage(_segment_tokens(session), _other_usage(session))
    yield from usage_oracle.wrong_costs(_usage_rows(session), _spend(session))


def _has_pending(db: Any) -> bool:
    """Return whether usage is not added up yet, or the reservation of an answered request has not ended."""
    with db.read() as session:
        answered = Reservation.expires_at > now(), Reservation.expires_at <= now() + budgets.RECORDED_SECONDS
        return minutes.has_changes(session) or session.scalar(select(Reservation.id).where(*answered)) is not None


def _unanswered() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of reservations that end after a deadline, but for those of a clock that was wrong."""
    settled_at = now() + budgets.RECORDED_SECONDS
    return Reservation.expires_at > settled_at, Reservation.expires_at < settled_at + _DEADLINE_SECONDS


def _usage_outside(campaign: "Campaign", limited: LimitedProjects, rows: list[UsageRow]) -> Iterator[str]:
    """Compare usage with what the generating engine gave: of all projects, and of the metered one.

    The usage of a request that was cut short is an estimate, which may be more than the engine gave.
    """
    prompts = campaign.prompts()[0]
    paid = [row for row in rows if row.model in (MODEL, CACHED_MODEL) and row.subject != minutes.CACHE]
    least, given = Tokens(), sum_tokens(map(tokens_of, prompts))
    yield from usage_oracle.usage_outside("all work", sum_tokens(row.tokens for row in paid), least=least, given=given)
    first = min((fault.at for fault in campaign.struck), default=float("inf"))
    last = first - _LOST_SECONDS * campaign.patience
    least = sum_tokens(answer.tokens for answer in limited.metered.answers if answer.at < last)
    answered = [tokens_of(prompt) for prompt in prompts if prompt.startswith(METERED)]
    given = sum_tokens([*answered, limited.metered.estimated])
    usage = sum_tokens(row.tokens for row in rows if row.project_id == limited.metered.project_id)
    yield from usage_oracle.usage_outside("the metered project", usage, least=least, given=given)


def _sums(table: Any) -> list[Any]:
    return [func.coalesce(func.sum(getattr(table, name)), 0) for name in TOKENS]


def _tokens(values: Any) -> Tokens:
    return Tokens._make(map(int, values))


def _job_tokens(session: Session) -> dict[str, Tokens]:
    rows = session.execute(select(Job.project_id, *_sums(Job)).where(_IS_BATCH).group_by(Job.project_id))
    return {project_id: _tokens(sums) for project_id, *sums in rows}


def _batch_usage(session: Session) -> dict[str, Tokens]:
    owner = UsageMinute.project_id
    rows = session.execute(select(owner, *_sums(UsageMinute)).where(UsageMinute.batch).group_by(owner))
    return {project_id: _tokens(sums) for project_id, *sums in rows}


def _segment_tokens(session: Session) -> dict[tuple[str, str], Tokens]:
    """Return what the segments of other jobs took, by project and endpoint; searches are counted as they are asked."""
    owner = Job.project_id, func.coalesce(func.nullif(Job.endpoint, ""), EMBEDDINGS)
    counted: ColumnElement[bool] = and_(~_IS_BATCH, or_(Job.endpoint.is_(None), Job.endpoint != SEARCH))
    rows = session.execute(
        select(*owner, *_sums(Segment)).join(Segment, Segment.job_id == Job.id).where(counted).group_by(*owner)
    )
    return {(project_id, endpoint): _tokens(sums) for project_id, endpoint, *sums in rows}


def _other_usage(session: Session) -> dict[tuple[str, str], Tokens]:
    owner = UsageMinute.project_id, UsageMinute.endpoint
    rows = session.execute(select(*owner, *_sums(UsageMinute)).where(~UsageMinute.batch).group_by(*owner))
    return {(project_id, endpoint): _tokens(sums) for project_id, endpoint, *sums in rows}


def _usage_rows(session: Session) -> list[UsageRow]:
    return [
        UsageRow(
            row.project_id,
            minutes.month_of(row.minute),
            row.model,
            row.endpoint,
            row.subject,
            _tokens(getattr(row, name) for name in TOKENS),
            row.cost,
        )
        for row in session.scalars(select(UsageMinute))
    ]


def _spend(session: Session) -> dict[tuple[str, int], int]:
    return {(row.project_id, row.month): row.amount for row in session.scalars(select(Spend))}
