"""Explain why no worker has taken a job, where the job itself does not report a reason.

With access to the job's database (on its host, or with its settings), check each step of the work:

    pending ──▶ not paused ──▶ a live worker ──▶ a free slot ──▶ published ──▶ claimed
                                                                    └── needs the broker, and a leading dispatcher

Without access only `/readyz` is available. It shows neither pauses nor the queue of a job.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.client.progress import Snapshot
from cli.errors import CliError
from cli.up import readiness
from cli.wording import duration

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from jobs.fleet.tables import Worker
    from jobs.ledger.tables import Job, Outbox
    from jobs.settings import Settings

_LATE = 10.0  # seconds; an idle dispatcher reads the outbox every second, and redelivers after ten
_SILENT = 60.0  # seconds without a heartbeat; many are due in that time
_PLAN = "cpu.plan"  # the queue that plans and finishes every job


def reasons(url: str, job: Snapshot, data_dir: Path | None) -> list[str]:
    """Return sentences that say why the job waits; none where no reason is known."""
    from sqlalchemy.exc import SQLAlchemyError

    from jobs.errors import NightmillError

    why = None
    with suppress(CliError, NightmillError, SQLAlchemyError):  # the job may be on another host, or of another version
        why = from_database(job.id, data_dir)
    if why is None:
        why = from_readiness(job, readiness.look(url) or {})
    if job.queue_position is not None and (job.queue_position or not why):
        why.append(f"{job.queue_position or 'none'} of its project's jobs before it")
    return why


def from_database(job_id: str, data_dir: Path | None) -> list[str]:
    """Return the reasons from this host's database. Raises CliError where it does not have the job."""
    from cli.up.effective import effective, opened
    from jobs.ledger.tables import Job

    with opened(data_dir) as db, db.read() as session:
        job = session.get(Job, job_id)
        if job is None:
            raise CliError(f"there is no job {job_id} in this host's database")
        why, is_late = _look(session, job)
    return [*why, *_not_publishing(effective(data_dir=data_dir))] if is_late else why


def from_readiness(job: Snapshot, ready: Mapping[str, Any]) -> list[str]:
    """Return the reasons that `/readyz` shows."""
    queue = _PLAN if job.state != "running" else ""
    if ready.get("database", "ok") != "ok":
        return ["the server's database is unavailable"]
    if queue and "workers" in ready and not ready["workers"].get(queue):
        return [f"no live worker of {queue}"]
    if ready.get("status") == "stuck":
        return ["no worker claims any waiting work: `nightmill doctor` on the server's host says why"]
    return []


def _look(session: "Session", job: "Job") -> tuple[list[str], bool]:
    """Return the reasons, and whether a late heartbeat or outbox message puts them in doubt."""
    message = _next_message(session, job)
    if message is None:
        return _claimed(session, job)
    if paused := _paused(session, job, message):
        return [paused], False
    why, late = _overdue(message)
    if busy := _all_busy(session, message):
        return busy[0], busy[1] or late  # a claim of a part of a slot counts as a whole slot
    return why, late


def _claimed(session: "Session", job: "Job") -> tuple[list[str], bool]:
    """Explain a job without pending messages: workers have claimed all of its work. They may be dead."""
    from sqlalchemy import select

    from jobs.fleet import workers as fleet
    from jobs.ledger.states import ShardState
    from jobs.ledger.tables import Shard

    running = select(Shard.worker_id).where(Shard.job_id == job.id, Shard.state == ShardState.RUNNING)
    names = {job.worker_id, *session.scalars(running)} - {None}
    if silent := _silent([worker for worker in fleet.everyone(session) if worker.id in names]):
        return [f"{silent[0].id} has claimed it, and has sent no heartbeat for {_ago(silent[0].seen_at)}"], True
    return ["a worker runs it, and there is no new result yet"] if names else [], not names


def _all_busy(session: "Session", message: "Outbox") -> tuple[list[str], bool] | None:
    """Return why no worker can claim work of the queue; None where a worker can."""
    from jobs.fleet import workers as fleet
    from jobs.ledger.pauses import Scope

    alive = fleet.alive(session, message.queue)
    if not alive:
        return [
            _no_worker(message.queue, [worker for worker in fleet.everyone(session) if message.queue in worker.queues])
        ], False
    slots, busy = fleet.slots(alive)[message.queue], fleet.claims_at(session, Scope.QUEUE, message.queue)
    return ([f"all slots of {message.queue} are busy ({slots})"], bool(_silent(alive))) if busy >= slots else None


def _overdue(message: "Outbox") -> tuple[list[str], bool]:
    from jobs.clock import now
    from jobs.ledger import outbox

    waits = now() - message.due_at
    if -outbox.LONGEST_DELAY <= waits < 0:
        return [f"it will be tried again in {duration(-waits)}"], False
    if waits < _LATE:
        return [], False
    if message.published_at is None:
        return [f"{message.queue} should have got a message for it {duration(waits)} ago"], True
    return [
        f"{message.queue} was sent a message for it {_ago(message.published_at)} ago, and no worker has claimed it"
    ], True


def _silent(workers: Sequence["Worker"]) -> list["Worker"]:
    """Return the workers whose heartbeat is late. With equal clocks the leading dispatcher would have removed them."""
    from jobs.clock import now

    return [worker for worker in workers if now() - worker.seen_at > _SILENT]


def _ago(at: float) -> str:
    from jobs.clock import now

    return duration(max(now() - at, 0.0))


def _next_message(session: "Session", job: "Job") -> "Outbox | None":
    """Return the oldest pending message that the job's state allows."""
    from sqlalchemy import select

    from jobs.clock import now
    from jobs.ledger import outbox
    from jobs.ledger.tables import Job, Outbox

    ready = select(Outbox).join(Job, Job.id == Outbox.job_id).where(Outbox.job_id == job.id, outbox.ready(now()))
    return session.scalar(ready.order_by(Outbox.id).limit(1))


def _paused(session: "Session", job: "Job", message: "Outbox") -> str:
    from jobs.ledger import pauses
    from jobs.queues import Task

    off = pauses.paused(session)
    if message.queue in off.of(pauses.Scope.QUEUE):
        return f"{message.queue} is paused; `nightmill resume queue {message.queue}` goes on"
    if message.task != Task.RUN:
        return ""
    if pauses.paused_jobs(session, [job.id]):
        return "it is paused by itself, until its client resumes it"
    held = off.stops(job.queue, job.model, job.project_id, job.serves_as)
    return "its queue, model or project is paused; `nightmill workers` shows what is" if held else ""


def _no_worker(queue: str, workers: Sequence["Worker"]) -> str:
    """Return why the registered workers take no work: paused, loading, or stopping."""
    if not workers:
        return f"no live worker of {queue}; `nightmill workers` lists the live workers"
    states = (f"{worker.id} is {'paused' if worker.state == 'ready' else worker.state}" for worker in workers)
    return f"no worker of {queue} takes work: {', '.join(states)}"


def _not_publishing(config: "Settings") -> Iterator[str]:
    """Yield faults of the broker and of the dispatcher. This takes a second, so it is the last check."""
    from cli.doctor.findings import Health, Patient
    from cli.doctor.reachable import broker
    from cli.up.folder import DataFolder
    from jobs.fleet.health import DISPATCHER, ailing

    folder = DataFolder(config.data_dir)
    for finding in broker(Patient(config, folder, folder.read_run())):
        if finding.health is Health.BROKEN:
            yield f"the broker is unavailable: {finding.message}; {finding.fix}"
    if problem := ailing(config, DISPATCHER):
        yield f"{problem}; `nightmill doctor` looks at the processes"
