"""Judge, after a run, the aliases that were moved and promoted, who answered for them, and what says so."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.ledger.tables import Audit
from jobs.registry.tables import Alias, AliasMove, ModelMove, ModelVersion
from jobs.webhooks.tables import Event
from tests.chaos import alias_clients, promotion_clients
from tests.chaos.judging import await_jobs, opened
from tests.chaos.judging_ours import BROKEN_SECONDS, unexcused
from tests.chaos.load import Broken
from tests.chaos.promotion_clients import KnownPromotion
from tests.support import alias_oracle, oracle
from tests.support.alias_oracle import AuditRow, MoveRow

if TYPE_CHECKING:
    from tests.chaos.campaign import Campaign

#: Until every web process follows a move: two seconds, and a request of the process.
_LAG_SECONDS = 3.0
#: A probe each round of the dispatcher, which waits for its answer for half a minute.
_COMPLETE_SECONDS = 90.0


def await_aliases(campaign: "Campaign") -> None:
    """I1: every promotion and every batch for an alias ends, and the last roll-back is complete."""
    load = campaign.load
    await_jobs(campaign, load.promotion_clients, "promotions have not ended in time")
    await_jobs(campaign, load.routed_batches, "batches for an alias have not ended in time")
    if not load.alias_clients.await_complete(_COMPLETE_SECONDS * campaign.patience):
        campaign.journal.violation(f"I1: the last roll-back of {alias_clients.ALIAS} is not complete")


def judge_aliases(campaign: "Campaign") -> None:
    """Judge answers, batches, moves and promotions."""
    clients, blame = campaign.load.alias_clients, campaign.journal.violation
    blame(*alias_oracle.wrong_answers(clients.answers, clients.moves, _LAG_SECONDS * campaign.patience))
    failures = [Broken(at, told) for at, told in clients.failures]
    ended = [at for engine in campaign.engines for at in engine.ended]
    blame(*unexcused(failures, ended, BROKEN_SECONDS * campaign.patience))
    for batch in campaign.load.routed_batches.jobs:
        result = oracle.fetch(campaign.load.client.sdk, batch.id)
        if batch.status != "completed":
            blame(f"{batch.key} is {batch.status}: {result.batch.errors}")
        blame(*alias_oracle.wrong_lines(batch.key, batch.prompts, result, promotion_clients.CANDIDATES))
    blame(*_wrong_ends(campaign))
    with opened(campaign) as stores, stores.db.snapshot() as session:
        blame(*_wrong_moves(campaign, session))
        blame(*_wrong_stages(campaign, session))


# ── promotions ──


def _wrong_ends(campaign: "Campaign") -> Iterator[str]:
    promotions = [promotion for promotion in campaign.load.promotion_clients.jobs if promotion.ended]
    for promotion in promotions:
        if promotion.status not in permitted_ends(promotion):
            yield f"{promotion.key} is {promotion.status} ({promotion.code})"
        event = f"promotion.{promotion.status}"
        yield from oracle.told_once(promotion.key, promotion.id, promotion.status, event, campaign.load.told)
    yield from wrong_pairs(promotions)


def permitted_ends(promotion: KnownPromotion) -> set[str]:
    """Return the statuses in which a promotion may end."""
    ends = {"promoted", "refused"} if promotion.passes and promotion.pair else {"promoted"}
    ends = ends if promotion.passes else {"refused"}
    return ends | ({"cancelled"} if promotion.cancelled else set())


def wrong_pairs(promotions: list[KnownPromotion]) -> Iterator[str]:
    """Yield the moments at which not exactly one of the promotions that pass their gates has moved the alias."""
    pairs = {promotion.pair for promotion in promotions} - {""}
    for pair in sorted(pairs):
        passing = [promotion for promotion in promotions if promotion.pair == pair and promotion.passes]
        statuses = Counter(promotion.status for promotion in passing)
        if passing and statuses["promoted"] != 1 and not (statuses["cancelled"] and not statuses["promoted"]):
            yield f"{pair}: of the promotions of one moment {dict(statuses)}, one is to be promoted"
        for promotion in passing:
            if promotion.status == "refused" and promotion.code != "target_moved":
                yield f"{promotion.key} passes its gate, and is refused: {promotion.code}"


# ── moves, from inside ──


def _wrong_moves(campaign: "Campaign", session: Session) -> Iterator[str]:
    load = campaign.load
    probes = sum(prompts.count(oracle.PROBE) for prompts in campaign.prompts())
    acknowledged = {alias_clients.ALIAS: load.alias_clients.acknowledged, promotion_clients.ALIAS: []}
    if load.promotion_clients.is_set_up:
        acknowledged[promotion_clients.ALIAS] = [promotion_clients.CREATION]
    for name, reasons in acknowledged.items():
        rows = move_rows(session, name)
        alias = session.scalar(select(Alias).where(Alias.name == name))
        yield from alias_oracle.wrong_moves(name, rows, reasons, alias.model if alias else "")
        yield from alias_oracle.wrong_rollbacks(name, rows)
        yield from alias_oracle.unaudited_moves(name, rows, audit_rows(session, name))
        awaited = load.alias_clients.awaited if name == alias_clients.ALIAS else ()
        yield from alias_oracle.untold_moves(name, rows, awaited, probes)
        if name == promotion_clients.ALIAS:
            ends = {job.id: job.status for job in load.promotion_clients.jobs if not job.is_staged}
            yield from alias_oracle.wrong_promotions(ends, [row.promotion for row in rows if row.promotion])


def move_rows(session: Session, name: str) -> list[MoveRow]:
    """Return the moves of an alias in their order."""
    moves = session.scalars(select(AliasMove).where(AliasMove.name == name).order_by(AliasMove.number)).all()
    events: dict[str, list[str]] = {move.id: [] for move in moves}
    told = select(Event).where(Event.subject_id.in_(list(events))).order_by(Event.seq)
    for event in session.scalars(told):
        events[event.subject_id].append(event.type)
    return [
        MoveRow(
            move.id,
            move.action,
            move.actor,
            move.reason,
            (move.routing or {"targets": [{"model": ""}]})["targets"][0]["model"],
            (move.gate or {}).get("promotion"),
            events[move.id],
            _fewest(move) if move.action == "rollback" else 0,
        )
        for move in moves
    ]


def _fewest(move: AliasMove) -> int:
    sides: list[Any] = list((move.gate or {}).values())
    return min((side["requests"] for side in sides), default=0)


def audit_rows(session: Session, name: str) -> list[AuditRow]:
    """Return the audit rows of an alias in their order."""
    rows = session.scalars(select(Audit).where(Audit.action.like("alias.%")).order_by(Audit.id))
    details = [(row, row.details or {}) for row in rows]
    return [
        AuditRow(row.action, row.actor, fields["model"], fields.get("promotion"))
        for row, fields in details
        if fields.get("name") == name
    ]


def _wrong_stages(campaign: "Campaign", session: Session) -> Iterator[str]:
    """Yield staged models that are not in production, by one move and one audit row of their promotion each."""
    staged = [job for job in campaign.load.promotion_clients.jobs if job.is_staged and job.status == "promoted"]
    moves = list(session.scalars(select(ModelMove)))
    audits = list(session.scalars(select(Audit).where(Audit.action == "model_version.update")))
    for promotion in staged:
        version = session.get(ModelVersion, promotion.candidate)
        if version is None or version.stage != "production":
            yield f"{promotion.key}: {promotion.candidate} is not in production"
        made = [move.actor for move in moves if (move.gate or {}).get("promotion") == promotion.id]
        told = [row.actor for row in audits if (row.details or {}).get("promotion") == promotion.id]
        if len(made) != 1 or made != told:
            yield f"{promotion.key}: moved by {made}, and in the audit log by {told}"
