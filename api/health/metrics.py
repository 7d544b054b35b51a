"""Prometheus metrics of the requests to this process, and of the whole deployment, which come from SQL.

Counters and histograms of the deployment are sums over jobs: they survive restarts, and each process gives the same
answer. Those over ended jobs are running sums (`jobs.ledger.totals`), to which a scrape adds the live jobs; all of its
queries see one moment, so that a job which ends meanwhile is counted once. A scrape is at most five seconds old, or ten
times the duration of the queries.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.samples import Sample
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.types import Scope

from api.health import alert_metrics
from api.ttl_cache import Recent
from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import quarantine
from jobs.fleet.models_file import Models, ModelsFileError
from jobs.fleet.tables import Measure, Model, Worker
from jobs.inference.tables import CacheUse
from jobs.ledger import measures, outbox, totals
from jobs.ledger.progress import outcomes_of
from jobs.ledger.states import LIVE, ShardState
from jobs.ledger.tables import Job, Shard
from jobs.settings import Settings
from jobs.webhooks import deliveries

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
Info("nightmill_build", "The version of this process.", registry=REGISTRY).info({"version": version("nightmill")})

_REQUESTS = Histogram(
    "nightmill_http_request_seconds",
    "Time from a request's headers to its answer's, by route.",
    ("method", "route", "status"),
    registry=REGISTRY,
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS", "WEBSOCKET"})


def observe_request(scope: Scope, status: int, seconds: float) -> None:
    """Observe one answered request."""
    _REQUESTS.labels(*method_and_route(scope), str(status)).observe(seconds)


def method_and_route(scope: Scope) -> tuple[str, str]:
    """Return the method of a request and its route's template: paths with ids would make a series each.

    The method of a WebSocket, and of each request on it, is `WEBSOCKET`.
    """
    method = scope.get("method", "WEBSOCKET")
    return method if method in _METHODS else "other", getattr(scope.get("route"), "path", "none")


_KEEP_TIMES = 10  # in durations of the queries
#: The label of a model that only requests and jobs name: clients choose those names.
OTHER = "other"
#: By name in `jobs.ledger.measures`: the metric, its help text, and its label.
_HISTOGRAMS = {
    measures.WAIT: ("nightmill_job_wait_seconds", "From when a job could begin to its first lines' claim.", "kind"),
    measures.ENDED: ("nightmill_job_seconds", "From when a job could begin to its end.", "kind"),
    measures.ENGINE: ("nightmill_engine_seconds", "A batch's request, from the engine's being asked.", "model"),
    measures.WEBHOOK: ("nightmill_webhook_seconds", "From an event to its acceptance by a receiver.", ""),
}
_TOKENS = ("input", "cached", "output", "reasoning")


class Exposition:
    """The text of a scrape, cached for a moment: many may scrape, and often."""

    def __init__(
        self, config: Settings, db: Database, models: Models, broker_full: Callable[[], bool], keep_seconds: float
    ) -> None:
        self._config = config
        self._db = db
        self._models = models
        self._broker_full = broker_full
        self._recent = Recent[bytes](keep_seconds, _KEEP_TIMES)

    def text(self) -> bytes:
        """Return the text of a scrape.

        Raises: DatabaseBusy.
        """
        return self._recent.get(self._render) + generate_latest(REGISTRY)

    def _render(self) -> bytes:
        with self._db.snapshot() as session:
            names = frozenset(["", *self._model_names(), *session.scalars(select(Model.id))])
            families = [_fold_unknown_models(family, names) for read in _READERS for family in read(session)]
        full = GaugeMetricFamily("nightmill_broker_full", "1: the broker has no memory left for interactive requests.")
        full.add_metric([], self._broker_full())
        families.append(full)
        families += [*alert_metrics.leader(self._config, self._db), *alert_metrics.disk_space(self._config)]
        registry = CollectorRegistry()
        registry.register(_Fixed(families))
        return generate_latest(registry)

    def _model_names(self) -> list[str]:
        try:
            registry = self._models.now()
        except ModelsFileError:
            return []
        return [*registry.models, *registry.aliases]


def _fold_unknown_models(family: Metric, names: Collection[str]) -> Metric:
    """Return the family with the label `other` for models that are not in `names`.

    Where an endpoint takes any name, clients choose the names, and their number has no bound.
    """
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for sample in family.samples:
        labels = dict(sample.labels)
        if labels.get("model", "") not in names and "host_devices" not in labels:
            labels["model"] = OTHER
        key = (sample.name, tuple(labels.items()))
        sums[key] = sums.get(key, 0.0) + sample.value
    family.samples = [Sample(name, dict(labels), value) for (name, labels), value in sums.items()]
    return family


class _Fixed:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _jobs(session: Session) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("nightmill_jobs", "Jobs by kind and state, removed ones too.", labels=["kind", "state"])
    live = select(Job.kind, Job.state, func.count()).where(Job.state.in_(LIVE)).group_by(Job.kind, Job.state)
    for kind, state, count in session.execute(live):
        jobs.add_metric([kind, state], count)
    for labels, count in totals.sums_of(session, totals.JOBS).items():
        jobs.add_metric(labels, count)
    yield jobs
    waiting = GaugeMetricFamily("nightmill_jobs_waiting", "Live jobs by what they wait for.", labels=["reason"])
    held_up = select(Job.waiting_for, func.count()).where(Job.state.in_(LIVE), Job.waiting_for.is_not(None))
    for reason, count in session.execute(held_up.group_by(Job.waiting_for)):
        waiting.add_metric([f"waiting_for_{reason}"], count)
    yield waiting


def _queues(session: Session) -> Iterator[Metric]:
    depth = GaugeMetricFamily("nightmill_queue_depth", "Messages enqueued and not claimed.", labels=["queue"])
    age = GaugeMetricFamily("nightmill_queue_oldest_seconds", "Age of the oldest of them.", labels=["queue"])
    at = now()
    for queue, (count, oldest) in outbox.depth(session).items():
        depth.add_metric([queue], count)
        age.add_metric([queue], max(at - oldest, 0.0))
    yield depth
    yield age
    where = func.coalesce(Shard.queue, Job.queue)
    running = select(where, func.count()).select_from(Job).join(Shard, Shard.job_id == Job.id)
    running = running.where(Job.state.in_(LIVE), Shard.state == ShardState.RUNNING)
    running = running.group_by(where)
    shards = GaugeMetricFamily("nightmill_shards_running", "Shards being answered.", labels=["queue"])
    for name, count in session.execute(running):
        shards.add_metric([name or ""], count)
    yield shards


def _work(session: Session) -> Iterator[Metric]:
    """Yield items and tokens: those of ended jobs from their totals, those of live jobs from their shards."""
    results, tokens = totals.sums_of(session, totals.ITEMS), totals.sums_of(session, totals.TOKENS)
    live = (
        select(
            Job.model,
            func.sum(Shard.done - Shard.failed),
            func.sum(Shard.failed),
            *(func.sum(getattr(Shard, f"{name}_tokens")) for name in _TOKENS),
        )
        .join(Shard, Shard.job_id == Job.id)
        .where(Job.state.in_(LIVE))
        .group_by(Job.model)
    )
    for model, completed, failed, *used in session.execute(live):
        results.update({(model or "", "completed"): int(completed), (model or "", "failed"): int(failed)})
        tokens.update({(model or "", name): int(count) for name, count in zip(_TOKENS, used, strict=True)})
    yield _counter("nightmill_items", "Requests answered.", ["model", "result"], results)
    yield _counter("nightmill_tokens", "Tokens used.", ["model", "type"], tokens)


def _counter(name: str, says: str, labels: Sequence[str], counts: Mapping[tuple[str, str], int]) -> Metric:
    family = CounterMetricFamily(name, says, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _outcomes(session: Session) -> Iterator[Metric]:
    """Yield outcomes: those of ended jobs from their totals, those of live jobs from shards and segments."""
    counts = totals.sums_of(session, totals.OUTCOMES)
    for model, outcomes in session.execute(outcomes_of(Job.state.in_(LIVE))):
        counts.update({(model or "", name): count for name, count in (outcomes or {}).items()})
    errors = CounterMetricFamily("nightmill_errors", "Requests that failed.", labels=["model", "code"])
    answers = CounterMetricFamily(
        "nightmill_answers",
        "Answers by finish reason, and empty ones.",
        labels=["model", "outcome"],
    )
    for (model, name), count in counts.items():
        family = errors if name.startswith("error:") else answers
        family.add_metric([model, name.removeprefix("error:")], count)
    yield errors
    yield answers


def _workers(session: Session) -> Iterator[Metric]:
    alive = GaugeMetricFamily("nightmill_workers", "Live workers.", labels=["pool", "state"])
    slots = GaugeMetricFamily("nightmill_worker_slots", "Slots of live workers.", labels=["queue"])
    counts: dict[tuple[str, str], int] = {}
    room: dict[str, int] = {}
    for worker in session.scalars(select(Worker)):
        counts[worker.pool, worker.state] = counts.get((worker.pool, worker.state), 0) + 1
        for queue in worker.queues if worker.state == "ready" else ():
            room[queue] = room.get(queue, 0) + worker.slots
    for (pool, state), count in counts.items():
        alive.add_metric([pool, state], count)
    for name, value in room.items():
        slots.add_metric([name], value)
    yield from (alive, slots)


def _measures(session: Session) -> Iterator[Metric]:
    """Yield histograms and counters from the few rows of measures."""
    rows_by_measure: dict[str, dict[str, list[Measure]]] = {}
    all_rows = measures.rows(session)
    for row in all_rows:
        rows_by_measure.setdefault(row.name, {}).setdefault(row.label, []).append(row)
    for measure, (name, says, label) in _HISTOGRAMS.items():
        family = HistogramMetricFamily(name, says, labels=[label] if label else [])
        for value, rows in rows_by_measure.get(measure, {}).items():
            family.add_metric([value] if label else [], _buckets(rows), sum(row.seconds for row in rows))
        yield family
    restarts = CounterMetricFamily("nightmill_engine_restarts", "Engines started anew.", labels=["pool"])
    for pool, rows in rows_by_measure.get(measures.RESTARTS, {}).items():
        restarts.add_metric([pool], sum(row.count for row in rows))
    yield restarts
    refusals = CounterMetricFamily("nightmill_broker_refusals", "Attempts to publish that the broker refused.")
    refusals.add_metric([], sum(row.count for row in rows_by_measure.get(measures.REFUSALS, {}).get("", ())))
    yield refusals
    yield from alert_metrics.failure_counts(all_rows)
    yield from alert_metrics.elections(session, all_rows)


def _buckets(rows: Sequence[Measure]) -> list[tuple[str, int]]:
    """Return cumulative counts by upper bound; each row counts from the bound before its own."""
    counts = dict.fromkeys((*map(str, measures.BOUNDS), measures.NO_BOUND), 0)
    counts.update({row.le: row.count for row in rows})
    bounds = sorted(counts, key=float)
    return list(zip(bounds, accumulate(counts[bound] for bound in bounds), strict=True))


def _quarantines(session: Session) -> Iterator[Metric]:
    left = GaugeMetricFamily(
        "nightmill_engine_quarantined",
        "Engines that died too often: 1 left alone, 0 on trial.",
        labels=["host_devices", "model"],
    )
    for row in quarantine.all_quarantines(session):
        left.add_metric([row.host_devices, row.model], 0 if row.trial else 1)
    yield left


def _losses(session: Session) -> Iterator[Metric]:
    """Yield lost claims. A claim that ended before its shard did has increased the shard's epoch by two."""
    losses = CounterMetricFamily("nightmill_lease_losses", "Claims on jobs and shards that ended by their lease.")
    live_losses = session.scalar(select(func.sum(Job.lost_leases)).where(Job.state.in_(LIVE)))
    losses.add_metric([], totals.sums_of(session, totals.LOST_LEASES).total() + int(live_losses or 0))
    yield losses
    reclaimed = select(func.sum(Shard.epoch - 1)).join(Job, Job.id == Shard.job_id)
    epochs = session.scalar(reclaimed.where(Job.state.in_(LIVE), Shard.epoch > 0))
    reclaims = GaugeMetricFamily("nightmill_shard_reclaims", "Claims of live shards that ended before the shard did.")
    reclaims.add_metric([], int(epochs or 0) // 2)
    yield reclaims


def _webhooks(session: Session) -> Iterator[Metric]:
    unfinished = GaugeMetricFamily("nightmill_webhook_deliveries", "Deliveries not accepted.", labels=["state"])
    for state, count in deliveries.count_unfinished(session).items():
        unfinished.add_metric([state], count)
    yield unfinished


def _cache(session: Session) -> Iterator[Metric]:
    """Yield cache lookups, which workers write every ten seconds."""
    uses = CounterMetricFamily("nightmill_cache_lookups", "Looked for in the cache.", labels=["kind", "result"])
    for use in session.scalars(select(CacheUse)):
        uses.add_metric([use.kind, "hit"], use.hits)
        uses.add_metric([use.kind, "miss"], use.misses)
    yield uses


_READERS: tuple[Callable[[Session], Any], ...] = (
    _jobs,
    _queues,
    _work,
    _outcomes,
    _workers,
    _quarantines,
    _measures,
    _losses,
    _webhooks,
    _cache,
    alert_metrics.ages,
)
