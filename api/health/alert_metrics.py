"""Metrics that operators alert on: failures, the leader, free disk space, and the ages of what waits."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet.leadership import ELECTED_AT, Leadership
from jobs.fleet.tables import Measure, Meta
from jobs.ledger import measures
from jobs.ledger.states import LIVE
from jobs.ledger.tables import Job
from jobs.platform import failures
from jobs.platform.storage import space_at
from jobs.settings import Settings
from jobs.webhooks import deliveries

_FAILURES = {
    failures.DATABASE: ("nightmill_database_failures", "Transactions that the database refused or did not answer."),
    failures.STORAGE: ("nightmill_storage_failures", "Reads and writes that the file storage refused."),
}


def failure_counts(rows: Sequence[Measure]) -> Iterator[Metric]:
    """Yield failures of all processes, which the next transaction of each has written down."""
    for name, (metric, says) in _FAILURES.items():
        family = CounterMetricFamily(metric, says, labels=["reason"])
        for row in rows:
            if row.name == name:
                family.add_metric([row.label], row.count)
        yield family


def ages(session: Session) -> Iterator[Metric]:
    """Yield the ages in seconds of the oldest live job of each kind, and of the delivery that is due for longest."""
    at = now()
    jobs = GaugeMetricFamily("nightmill_job_oldest_seconds", "Age of the oldest live job.", labels=["kind"])
    oldest = select(Job.kind, func.min(Job.created_at)).where(Job.state.in_(LIVE)).group_by(Job.kind)
    for kind, created_at in session.execute(oldest):
        jobs.add_metric([kind], max(at - created_at, 0.0))
    yield jobs
    due_at = deliveries.next_due(session)
    late = max(at - due_at, 0.0) if due_at is not None else 0.0
    yield GaugeMetricFamily("nightmill_webhook_oldest_due_seconds", "For how long a delivery has been due.", value=late)


def elections(session: Session, rows: Sequence[Measure]) -> Iterator[Metric]:
    """Yield when the dispatcher that leads, or led last, was elected, and the number of elections."""
    elected_at = session.scalar(select(Meta.value).where(Meta.key == ELECTED_AT))
    since = GaugeMetricFamily("nightmill_dispatcher_elected_timestamp_seconds", "Unix time of the last election.")
    if elected_at is not None:
        since.add_metric([], float(elected_at))
    yield since
    count = sum(row.count for row in rows if row.name == measures.ELECTIONS)
    yield CounterMetricFamily("nightmill_dispatcher_elections", "Elections of a dispatcher.", value=count)


def leader(config: Settings, db: Database) -> Iterator[Metric]:
    """Yield whether a dispatcher leads. Raises DatabaseBusy."""
    leads = Leadership(config, db).taken()
    yield GaugeMetricFamily("nightmill_dispatcher_leads", "1: a dispatcher leads, on any host.", value=leads)


def disk_space(config: Settings) -> Iterator[Metric]:
    """Yield what is free in the folders of this host; a file system without a limit of inodes has no such metric."""
    free = GaugeMetricFamily("nightmill_disk_free_bytes", "Free bytes on this host.", labels=["folder"])
    inodes = GaugeMetricFamily("nightmill_disk_free_inodes", "Free inodes on this host.", labels=["folder"])
    for name, folder in zip(("data", "files"), config.own_folders, strict=False):
        space = space_at(_existing(folder))
        free.add_metric([name], space.bytes)
        if space.inodes is not None:
            inodes.add_metric([name], space.inodes)
    yield free
    yield inodes


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
