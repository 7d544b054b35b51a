"""The table at the end of a run."""

from collections import Counter
from statistics import median

from tests.chaos.campaign import LOST_AT_ONCE, Campaign
from tests.chaos.faults import ALL_FAULTS
from tests.chaos.judging import embedded_again, embedding_bound


def rows(campaign: Campaign) -> list[tuple[str, ...]]:
    """Fault, dose, requests repeated, what the bound allows, recovery."""
    doses = Counter(one.name for one in campaign.struck)
    spent, times = campaign.rework_by_fault(), campaign.recoveries()
    found = []
    for name, dose in sorted(doses.items(), key=lambda pair: (ALL_FAULTS[pair[0]].family, pair[0])):
        fault = ALL_FAULTS[name]
        bound = dose * fault.rework * LOST_AT_ONCE
        found.append((fault.family, name, str(dose), str(spent.get(name, 0)), str(bound), _span(times.get(name, []))))
    return found


def shown(campaign: Campaign) -> str:
    head = ("", "fault", "dose", "repeated", "bound", "goes on after, median / worst")
    body = rows(campaign)
    widths = [max(len(row[column]) for row in (head, *body)) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *body)]
    return "\n".join([*lines, "", *_totals(campaign)])


def _totals(campaign: Campaign) -> list[str]:
    load, kills = campaign.load, sum(ALL_FAULTS[one.name].kills for one in campaign.struck)
    times = campaign.scene.recovered
    broken = sum(len(client.broken) for client in load.clients)
    states = Counter(result.batch.status for result in campaign.results.values())
    ends = Counter(seen[-1].status for seen in load.askers.seen.values())
    lines = sum(len(result.lines) for result in campaign.results.values())
    return [
        f"seed {campaign.seed}: {kills} kills and {len(campaign.struck) - kills} other faults",
        f"{len(load.jobs)} batches ({dict(states)}), {lines} lines, {len(load.told)} webhooks",
        f"{len(load.askers.asked)} responses in the background ({dict(ends)})",
        _stores(campaign),
        _ours(campaign),
        _tuned(campaign),
        _evaluated(campaign),
        _pipelines(campaign),
        _aliased(campaign),
        _limited(campaign),
        f"repeated requests: {campaign.rework()}, bound {campaign.bound()}",
        f"cancelled after {_span(load.cancel_seconds)}; longest standstill {campaign.longest_standstill():.1f} s",
        f"answers 503: {sum(client.busy for client in load.clients)}, 500 of an engine that ended: {broken}",
        f"`up` again after {_span(times.get('up again', []))}",
        f"a swallowed message was published again and answered after {_span(times.get('idle', []))}",
        f"violations: {len(campaign.journal.violations)}",
    ]


def _stores(campaign: Campaign) -> str:
    store_clients = campaign.load.store_clients
    ends = dict(
        Counter("taken out" if paper.gone else paper.status for one in store_clients.alive for paper in one.papers)
    )
    brought = f"{len(store_clients.intakes)} ingestions, {len(store_clients.papers)} files"
    again = f"embedded again: {embedded_again(campaign)} texts, bound {embedding_bound(campaign)}"
    return (
        f"{len(store_clients.known_stores)} vector stores, {brought} ({ends} in stores that are there),"
        f" {store_clients.searches} searches; {again}"
    )


def _ours(campaign: Campaign) -> str:
    source, repeaters = campaign.load.source_client, campaign.load.repeaters
    answers = [answer for one in repeaters for answer in one.answers]
    vectors = [vector for one in repeaters for vector in one.vectors]
    again = sum(one.cached for one in answers), sum(one.cached > 0 for one in vectors)
    folder = (
        f"a folder of {len(source.mirror.versions)} versions: {len(source.syncs)} syncs, {source.synced} ended well"
    )
    return (
        f"{folder}, {source.switches} switches of index, {source.searches} searches; {len(answers)} answers and"
        f" {len(vectors)} vectors asked for, {again[0]} and {again[1]} given again,"
        f" {sum(len(one.clearings) for one in repeaters)} clearings"
    )


def _tuned(campaign: Campaign) -> str:
    tuners = campaign.load.tuners
    ends = dict(Counter(tuning.status for tuning in tuners.jobs))
    asked = Counter(answer.model for answer in tuners.answers)
    return (
        f"{len(tuners.jobs)} fine-tuning jobs ({ends}), {len(tuners.models)} models and checkpoints,"
        f" {len(tuners.answers)} answers of {len(asked)} of them"
    )


def _evaluated(campaign: Campaign) -> str:
    evaluations = campaign.load.evaluators.jobs
    ends = dict(Counter("deleted" if evaluation.deleted else evaluation.status for evaluation in evaluations))
    return (
        f"{len(evaluations)} runs of evals ({ends}), {sum(len(evaluation.right) for evaluation in evaluations)} items"
    )


def _pipelines(campaign: Campaign) -> str:
    pipelines = campaign.load.pipeline_clients.jobs
    ends = dict(Counter(pipeline.status for pipeline in pipelines))
    return f"{len(pipelines)} pipelines ({ends}), {sum(pipeline.lines for pipeline in pipelines)} lines"


def _aliased(campaign: Campaign) -> str:
    load, clients = campaign.load, campaign.load.alias_clients
    asked = dict(Counter(answer.header for answer in clients.answers))
    ends = dict(Counter(promotion.status for promotion in load.promotion_clients.jobs))
    return (
        f"{len(clients.answers)} answers of an alias ({asked}) and {len(clients.moves)} moves of it,"
        f" {clients.rollbacks} roll-backs; {len(load.promotion_clients.jobs)} promotions ({ends}),"
        f" {len(load.routed_batches.jobs)} batches for an alias"
    )


def _limited(campaign: Campaign) -> str:
    if (limited := campaign.load.limited) is None:
        return "no projects with limits"
    budgeted, metered, revoked = limited.budgeted, limited.metered, limited.revoked
    return (
        f"{len(budgeted.jobs)} batches under a spend limit that was raised to {budgeted.limit} cents;"
        f" {metered.refusals} of {metered.requests} requests above a rate limit;"
        f" {revoked.keys} keys revoked under {len(revoked.jobs)} batches"
    )


def _span(seconds: list[float]) -> str:
    return f"{median(seconds):.1f} / {max(seconds):.1f} s" if seconds else "-"
