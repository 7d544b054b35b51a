"""Maintenance: what the leading dispatcher does once a second, and once a minute.

workers     whose heartbeat stands still for a lease, or whose process is gone from this host: their row goes
schedules   whose time has come; sources too
claims      of such workers at once; others when their own heartbeat stands still for a lease
jobs        past their window; of a key or project that has ended; stopping for longer than the grace (their claims are
            revoked); left without a next step;
            waiting for others that have ended; live although their parent was cancelled; waiting for a spend limit
alerts      of spending that has reached a threshold
aliases     whose new models do worse are rolled back, see `workers.dispatcher.rollbacks`; silent shadows are told
evaluations online ones: rounds that are due begin, and those that have ended are counted
audit       sealed; its head sent away once a day
counts      the jobs of sealed rows are added to the sums of ended jobs, and what transactions counted to the measures
events      numbered: the positions in the feeds of their projects
retention   every minute, see `workers.dispatcher.retention`
"""

import logging
from collections.abc import Callable
from functools import partial

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import WRITE_ROWS, Database
from jobs.errors import Conflict, DatabaseBusy
from jobs.fleet import quarantine
from jobs.fleet import workers as fleet
from jobs.fleet.models_file import Registry
from jobs.fleet.tables import Worker
from jobs.ledger import audit, dependencies, feed, kinds, ledger, measures, pauses, shards, totals
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.platform import processes
from jobs.platform.storage import Storage
from jobs.queues import Queue, Task
from jobs.registry import aliases
from jobs.retrieval import attachments, sources
from jobs.schedules import schedules
from jobs.security import ended_keys
from jobs.security.audit_key import audit_key
from jobs.settings import Settings
from jobs.timings import Timings
from jobs.usage import alerts, budgets, minutes, stored_bytes
from jobs.webhooks import claims, deliveries, outcomes, webhook_endpoints
from workers.dispatcher.anchoring import Anchoring
from workers.dispatcher.leases import Observer, Since
from workers.dispatcher.online_evaluations import OnlineEvaluations
from workers.dispatcher.retention import Retention
from workers.dispatcher.rollbacks import Rollbacks

log = logging.getLogger(__name__)
_ACTOR = "dispatcher"
_SWEEP_SECONDS = 5.0
_RETENTION_SECONDS = 60.0
_PURGED_AT_ONCE = 10  # transactions for one source per round
_UNPARKED_AT_ONCE = 20  # transactions of WRITE_ROWS deliveries per sweep
_PAGES_AT_ONCE = 20  # transactions of WRITE_ROWS rows per round, so that a backlog is not sealed or numbered in one go
_WAIT = 1 / 30  # of a lease, for the turn to write: a worker that holds the lock may have stood still until now


class Maintenance:
    """Hold the observations of one leader, and run its maintenance."""

    def __init__(
        self,
        config: Settings,
        db: Database,
        storage: Storage,
        clock: Callable[[], float],
        registry: Callable[[], Registry | None],
        timings: Timings = Timings(),
    ) -> None:
        self._config = config
        self._registry = registry
        self._db = db
        self._clock = clock
        self._workers = Observer[str](config.lease_seconds, clock)
        self._shards = Observer[tuple[str, int, int]](config.lease_seconds, clock)
        self._jobs = Observer[tuple[str, int]](config.lease_seconds, clock)
        self._stopping = Since[str](clock)
        self._bounds = quarantine.QuarantineLimits.of(config)
        self._timings = timings
        self._retention = Retention(config, db, storage, timings)
        self._anchoring = Anchoring(config, db)
        self._rollbacks = Rollbacks(config, db, registry)
        self._online_evaluations = OnlineEvaluations(config, db, storage, registry)
        self._swept = self._retained = clock()
        self._dependents_left = False  # whether some were left by the last pass

    def run(self) -> None:
        """Run what is due. Raises DatabaseBusy.

        Where no worker has sent a heartbeat for long either, none could: no lease ends for that.
        """
        try:
            self._run()
        except DatabaseBusy:
            if self._workers.stands_still:
                for observer in (self._workers, self._shards, self._jobs):
                    observer.start_afresh()
            raise

    def _run(self) -> None:
        self._remove_dead_workers()
        self._revoke_stale_claims()
        self._fire_schedules()
        self._expire()
        self._end_jobs_of_ended_keys()
        self._revoke_stopping()
        self._repeat(audit.unsealed, audit.seal)
        if key := audit_key(self._config):  # read anew: `nightmill audit sign` may have made it
            self._repeat(audit.unsigned, partial(audit.extend_signature, key=key))
        self._repeat(totals.has_uncounted, totals.count)
        self._repeat(measures.has_changes, measures.add_up)
        if registry := self._registry():  # else usage waits for the names and the prices of models
            self._repeat(minutes.has_changes, partial(minutes.fold, resolve=registry.price_source))
        self._repeat(feed.unnumbered, feed.number)
        if self._clock() - self._swept >= min(_SWEEP_SECONDS, self._config.lease_seconds):
            self._swept = self._clock()
            self._sweep()
        elif self._dependents_left:
            self._dependents_left = self._advance_dependents()
        if self._clock() - self._retained >= _RETENTION_SECONDS:
            self._retained = self._clock()
            self._retention.run()
            self._write(quarantine.forget)
            self._write(stored_bytes.sample_day)
            self._anchoring.run()
        else:
            self._retention.resume()

    def work_without_jobs(self) -> dict[Task, Queue]:
        """Return the due work without a job (webhooks, removals) that a live worker can do, with its queue."""
        with self._db.read() as session:
            waits = {
                Task.DELIVER: (Queue.WEBHOOKS, deliveries.due_count(session) > 0),
                Task.PURGE: (Queue.INGEST, attachments.has_due_removals(session)),
            }
            due = {task: queue for task, (queue, is_due) in waits.items() if is_due}
            held = pauses.current_pauses(session).of(pauses.Scope.QUEUE) if due else frozenset()
            needed = {task: queue for task, queue in due.items() if queue not in held}
            return {task: queue for task, queue in needed.items() if fleet.alive(session, queue)}

    def _remove_dead_workers(self) -> None:
        with self._db.read() as session:
            workers = session.scalars(select(Worker)).all()
        silent = {key for key, _ in self._workers.find_stale((worker.id, worker.heartbeat) for worker in workers)}
        for worker in workers:
            if worker.id in silent or processes.has_ended(worker.host, worker.pid, worker.started):
                self._revoke(
                    partial(
                        self._handle_worker_death, worker_id=worker.id, seen=worker.heartbeat, registry=self._registry()
                    )
                )

    def _handle_worker_death(self, session: Session, worker_id: str, seen: int, registry: Registry | None) -> None:
        """Revoke all that a dead worker held and delete its row, in one transaction; count the deaths of its engines.

        A worker that has sent a heartbeat since it was looked at lives.
        """
        worker = session.get(Worker, worker_id)
        if (
            worker is not None
            and worker.heartbeat != seen
            and not processes.has_ended(worker.host, worker.pid, worker.started)
        ):
            return
        log.warning("worker_lost", extra={"worker": worker_id, "pool": worker.pool if worker else None})
        if worker is not None:
            left = quarantine.handle_worker_death(session, worker, registry.aliases if registry else {}, self._bounds)
            for model in left:
                log.error("engine_quarantined", extra={"model": model, "host_devices": worker.host_devices})
        for job_id, n, epoch, heartbeat, holder in shards.running(session):
            if holder == worker_id:
                shards.revoke_lease(session, job_id, n, epoch, heartbeat)
        for job_id, epoch, heartbeat, holder in ledger.current_claims(session):
            if holder == worker_id:
                ledger.revoke_lease(session, job_id, epoch, heartbeat)
        claims.revoke_claims(session, worker_id)
        fleet.leave(session, worker_id)

    def _revoke_stale_claims(self) -> None:
        """Revoke claims whose own heartbeat stands still, though their worker may live."""
        with self._db.read() as session:
            running = shards.running(session)
            claimed = ledger.current_claims(session)
        lost_shards = self._shards.find_stale(
            ((job_id, n, epoch), heartbeat) for job_id, n, epoch, heartbeat, _ in running
        )
        lost_jobs = self._jobs.find_stale(((job_id, epoch), heartbeat) for job_id, epoch, heartbeat, _ in claimed)
        for (job_id, n, epoch), heartbeat in lost_shards:
            log.warning("lease_lost", extra={"job_id": job_id, "shard": n, "epoch": epoch})
            self._revoke(partial(shards.revoke_lease, job_id=job_id, n=n, epoch=epoch, heartbeat=heartbeat))
        for (job_id, epoch), heartbeat in lost_jobs:
            log.warning("lease_lost", extra={"job_id": job_id, "epoch": epoch})
            self._revoke(partial(ledger.revoke_lease, job_id=job_id, epoch=epoch, heartbeat=heartbeat))

    def _fire_schedules(self) -> None:
        with self._db.read() as session:
            due = schedules.due(session)
        if registry := self._registry():  # else they wait for the models
            for schedule_id in due:
                submitted = self._fire_schedule(schedule_id, registry)
                log.info("schedule_fired", extra={"schedule": schedule_id, "submitted": submitted})
        with self._db.read() as session:
            waiting = sources.due(session)
        for source_id in waiting:
            job = self._write(partial(sources.fire, source_id=source_id))
            log.info("source_fired", extra={"source": source_id, "submitted": job is not None})

    def _fire_schedule(self, schedule_id: str, registry: Registry) -> bool:
        """Fire a schedule; return whether it has submitted a job."""
        fire = partial(schedules.fire, schedule_id=schedule_id, config=self._config, registry=registry)
        try:
            return self._write(fire) is not None
        except schedules.Refused as refusal:  # nothing of the job is left
            self._write(partial(schedules.miss, schedule_id=schedule_id, reason=refusal.message))
            return False

    def _expire(self) -> None:
        with self._db.read() as session:
            overdue = ledger.overdue(session, now())
        for job_id in overdue:
            log.info("job_expires", extra={"job_id": job_id})
            self._write(partial(ledger.expire, job_id=job_id, actor=_ACTOR))

    def _end_jobs_of_ended_keys(self) -> None:
        with self._db.read() as session:
            ended = ended_keys.jobs_to_end(session, WRITE_ROWS)
        for job_id in ended:
            log.info("job_key_ended", extra={"job_id": job_id})
            self._write(partial(ended_keys.end_job, job_id=job_id, actor=_ACTOR))

    def _revoke_stopping(self) -> None:
        """Revoke the claims of stopping jobs after a grace, in which workers abort and commit what they finished."""
        with self._db.read() as session:
            jobs = shards.stopping(session)
        for job_id, age in self._stopping.ages(jobs).items():
            if age >= self._timings.cancel_grace:
                self._write(partial(shards.revoke_running, job_id=job_id))

    def _sweep(self) -> None:
        with self._db.read() as session:
            lost, unowed = ledger.jobs_lacking_next_step(session), shards.is_message_missing(session)
        for job_id in lost:
            self._write(partial(ledger.advance_job, job_id=job_id, actor=_ACTOR))
        for job_id, what in self._find_waits():
            self._write(partial(ledger.wait_for, job_id=job_id, what=what))
        if unowed and self._write(lambda session: shards.restore_messages(session, WRITE_ROWS)):
            log.warning("messages_restored")
        self._dependents_left = self._advance_dependents()
        self._repeat(budgets.has_expired, budgets.purge_reservations)
        self._fire_alerts()
        self._rollbacks.run()
        self._online_evaluations.run()
        self._tell_silent_shadows()
        self._release_deliveries()
        self._purge_sources()

    def _advance_dependents(self) -> bool:
        """Release, fail or cancel the jobs whose predecessors or parent have ended: a chain of them link by link.

        Each job has its own transaction. Return whether the time for it was over before all of them were advanced.
        """
        until, advanced = self._clock() + self._timings.dependents_pass, True
        while advanced and (due := self._due_dependents()):
            advanced = False
            for advance, job_id in due:
                advanced |= bool(self._write(partial(advance, job_id=job_id)))
                if self._clock() >= until:
                    return True
        return False

    def _due_dependents(self) -> list[tuple[Callable[..., bool], str]]:
        """Return some of these jobs, each with what is to be done with it."""
        with self._db.read() as session:
            return [
                *((ledger.release_dependent, job_id) for job_id in dependencies.releasable(session, WRITE_ROWS)),
                *((_fail_dependent, job_id) for job_id in dependencies.failing(session, WRITE_ROWS)),
                *((_cancel_child, job_id) for job_id in dependencies.orphans(session, WRITE_ROWS)),
            ]

    def _fire_alerts(self) -> None:
        with self._db.read() as session:
            due = alerts.alerts_to_fire(session)
        for alert_id in due:
            self._write(partial(alerts.fire, alert_id=alert_id))
            log.info("spend_alert_fired", extra={"alert": alert_id})

    def _tell_silent_shadows(self) -> None:
        with self._db.read() as session:
            silent = aliases.list_silent(session)
        for project_id, name in silent:
            if self._write(partial(aliases.tell_silence, project_id=project_id, name=name)):
                log.warning("alias_shadow_silent", extra={"alias": name})

    def _purge_sources(self) -> None:
        """Purge some documents of deleted sources, and of sources whose store was deleted."""
        with self._db.read() as session:
            pending_deletion = sources.pending_deletion(session)
        for source in pending_deletion:
            if source.deleted_at is None:
                self._write(partial(sources.mark_for_deletion, source=source, actor=_ACTOR))
            for _ in range(_PURGED_AT_ONCE):
                if not self._write(partial(sources.purge, source_id=source.id, actor=_ACTOR)):
                    break

    def _release_deliveries(self) -> None:
        """Release deliveries of dead workers, of wrong clocks, and of endpoints that are enabled again."""
        with self._db.read() as session:
            has_ended = claims.orphans(session)
            late = outcomes.overdue_deliveries(session, self._config, WRITE_ROWS)
        for worker_id in has_ended:
            log.warning("deliveries_taken_back", extra={"worker": worker_id})
            self._write(partial(claims.revoke_claims, worker_id=worker_id))
        if late:
            log.warning("deliveries_brought_forward", extra={"count": len(late)})
            self._write(partial(outcomes.bring_forward, ids=late))
        for _ in range(_UNPARKED_AT_ONCE):
            with self._db.read() as session:
                parked = webhook_endpoints.deliveries_to_resume(session, WRITE_ROWS)
            if not parked:
                break
            self._write(partial(webhook_endpoints.unpark, ids=parked))

    def _find_waits(self) -> list[tuple[str, str | None]]:
        """Return the jobs that wait without saying so, each with what it waits for.

        That is a pause, its time, its model, or, for a job without a model, a worker of its queue. Jobs that waited for
        what has come, or for a spend limit that is no longer reached, wait for nothing. Whether it is reached shows
        only where the prices of the models file are known.
        """
        registry = self._registry()
        with self._db.read() as session:
            off, at = pauses.current_pauses(session), now()
            early = func.coalesce(Job.not_before, 0.0) > at
            served = fleet.served_models(fleet.alive(session), registry)
            begun = and_(ledger.BUSY, ~fleet.is_unserved(served))  # it may take minutes to answer the first line
            over = [
                *ledger.jobs_waiting_for(session, "pause", ~off.is_held),
                *ledger.jobs_waiting_for(session, "time", ~early),
                *ledger.jobs_waiting_for(session, "model", begun),
                *ledger.jobs_waiting_for(session, "worker", ~fleet.is_unserved(served)),
                *(budgets.jobs_to_release(session, registry.price_source) if registry else ()),
            ]
            held = ledger.idle(session, off.is_held)
            others = ledger.idle(session, and_(~off.is_held, or_(early, fleet.is_unserved(served))))
        reasons = [(job.id, "pause") for job in held] + [(job.id, _reason(job, at)) for job in others]
        return [*((job_id, None) for job_id in over), *reasons]

    def _repeat(self, is_due: Callable[[Session], bool], work: Callable[[Session], int]) -> None:
        """Do some of `work` in a transaction while it is due and something is done, but not too often in one round."""
        for _ in range(_PAGES_AT_ONCE):
            with self._db.read() as session:
                if not is_due(session):
                    return
            if not self._write(work):
                return

    def _revoke(self, work: Callable[[Session], object]) -> None:
        """Run `work`, which revokes claims, in a write transaction.

        Raises DatabaseBusy after a wait for the transaction, if no heartbeat moved: workers may have waited as well.
        """
        asked = self._clock()

        def revoke(session: Session) -> None:
            if self._workers.stands_still and self._clock() - asked > self._config.lease_seconds * _WAIT:
                raise DatabaseBusy
            work(session)

        self._write(revoke)

    def _write(self, work: Callable[[Session], object]) -> object:
        """Run `work` in a write transaction, then let other processes write."""
        with self._db.write() as session:
            done = work(session)
        self._db.breathe()
        return done


def _fail_dependent(session: Session, job_id: str) -> bool:
    """Fail a job whose predecessor did not complete, or stop some parts of it before; return whether that was so."""
    job = ledger.lock(session, job_id)
    error = ledger.dependency_error(session, job) if job else None
    if job is None or error is None:
        return False
    stop = kinds.lenient(job.kind).stop
    if not (stop and stop(session, job, JobState.FAILED, [error])):
        ledger.fail_dependent(session, job, error, actor=_ACTOR)
    return True


def _cancel_child(session: Session, job_id: str) -> bool:
    """Cancel a child whose parent will not complete; return False when it has ended meanwhile."""
    try:
        ledger.cancel(session, job_id, actor=_ACTOR)
    except Conflict:
        return False
    return True


def _reason(job: Job, at: float) -> str:
    if job.not_before is not None and job.not_before > at:
        return "time"
    return "worker" if job.model is None else "model"
