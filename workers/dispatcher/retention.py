"""Retention: the removal of what is no longer needed.

These are expired files and answers, deleted files with their parts of jobs, abandoned uploads, old idempotency keys,
API keys of logins that nobody used, the shards of old jobs and their webhooks, and entries of the cache that cannot be
found any more. Where settings say so, the rows of old jobs and of the audit log go too.

Rows go first, then bytes; new bytes come before their row. A crash between leaves orphans, which
`workers.dispatcher.orphans` looks for once an hour. Objects of a job go before the rows that name them, and before
the row of a deleted file. A file's bytes stay while a live job reads it.

No index finds the old jobs of which something is left, and a query for them would read all jobs that ever ended. So a
walk goes through the old jobs once an hour, a page at a time. Old rows of other tables, which have no index by their
time either, are looked for then, too.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, delete, exists, func, or_, select, tuple_, update
from sqlalchemy.orm import Session

from jobs.batches import batches
from jobs.clock import now
from jobs.db.base import Base
from jobs.db.engine import UNSEEN, Database, page_ids
from jobs.errors import DatabaseBusy, NotFound, StorageFull, StorageUnavailable
from jobs.files import lookup
from jobs.files.tables import File, Upload, UploadPart
from jobs.finetuning import datasets
from jobs.inference import cache
from jobs.inference.shadow_answers import KEPT_SECONDS
from jobs.inference.tables import (
    Conversation,
    RequestMinute,
    ShadowAnswer,
    ShadowMinute,
    StoredCompletion,
    StoredResponse,
)
from jobs.ledger import audit, feed, kinds, removal
from jobs.ledger.removal import FULL
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Job, Segment, Shard
from jobs.platform.storage import Storage
from jobs.registry import models as tuned_models
from jobs.retrieval import attachments
from jobs.security.audit_key import audit_key
from jobs.security.sessions import idle_login_keys
from jobs.security.tables import ApiKey, Idempotency
from jobs.settings import Settings
from jobs.timings import Timings
from jobs.webhooks import webhook_endpoints
from jobs.webhooks.tables import Attempt, Delivery, Event
from workers.dispatcher.orphans import Orphans, retention_conditions

log = logging.getLogger(__name__)
T = TypeVar("T", StoredResponse, StoredCompletion)
_AT_ONCE = 200
_UPLOADED = ("completed", "cancelled", "expired")
_PAGES = 20
_JOBS_AT_ONCE = 10
_WALKED_AT_ONCE = 1000
_REQUESTS_SECONDS = 8 * 86_400  # throughput is shown of a week
_ORPHAN_PASSES = _WALK_PASSES = 60  # once an hour
_STORAGE = (StorageUnavailable, StorageFull, NotFound)


class Retention:
    """Remove what is no longer needed. Each pass does a bounded amount; the next one goes on."""

    def __init__(self, config: Settings, db: Database, storage: Storage, timings: Timings = Timings()) -> None:
        self._config, self._timings = config, timings
        self._db = db
        self._storage = storage
        self._passes = 0
        self._orphans = Orphans(config, db, storage)
        self._looking: Iterator[None] | None = None
        self._walking: Iterator[bool] | None = None
        self._passes_to_walk = 0
        self._rows_due = False  # whether old rows are to be looked for
        self._left: list[Callable[[], bool]] = []
        self._unmeasured: list[Any] = [StoredResponse, StoredCompletion, Conversation]
        self._measured = ""  # the last id of the first of these tables whose size was asked for
        self._until = 0.0

    def run(self) -> None:
        """Begin a pass, for a bounded time; `resume` does what is left."""
        if self._looking is None:  # looks are an hour apart, however long one takes
            self._passes += 1
            if self._passes % _ORPHAN_PASSES == 0:
                self._looking = self._orphans.look()
        if self._walking is None:
            if not self._passes_to_walk:
                self._walking, self._passes_to_walk, self._rows_due = self._walk(), _WALK_PASSES, True
            self._passes_to_walk -= 1
        bounded = [
            self._try_cache,
            self._remove_files,
            self._remove_answers,
            self._remove_uploads,
            self._remove_jobs,
            self._remove_rows,
        ]
        bounded += [self._purge_tuned_models, partial(self._repeat, partial(self._process_page, _remove_datasets))]
        bounded += [partial(self._repeat, partial(self._process_page, self._remove_audit_rows)), self._measure_sizes]
        self._left = [*bounded, self._look]
        self._run_steps(self._timings.retention_pass)

    def resume(self) -> None:
        """Go on with what the last pass had no time for."""
        self._run_steps(self._timings.retention_more)

    def _run_steps(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        steps, self._left = self._left, []
        for step in steps:
            if step():
                self._left.append(step)
            self._db.breathe()

    def _repeat(self, page: Callable[[], bool]) -> bool:
        """Process pages while each is full and there is time; return whether there may be more."""
        for _ in range(_PAGES):
            if not page():
                return False
            self._db.breathe()
            if time.monotonic() > self._until:
                break
        return True

    def _process_page(self, work: Callable[[Session], int]) -> bool:
        """Process a page in one transaction; return whether it was full."""
        with self._db.write() as session:
            return work(session) >= _AT_ONCE

    def _remove_files(self) -> bool:
        """Mark expired files for deletion, but not a schedule's; delete the bytes of those that no live job reads."""
        hidden = self._repeat(partial(self._process_page, _hide))
        return self._repeat(self._purge_files) or hidden

    def _purge_files(self) -> bool:
        done = File.deleted_at.is_not(None), ~kinds.is_read(File.id), *cache.has_no_entry()
        with self._db.read() as session:
            files = session.scalars(select(File).where(*done).limit(_AT_ONCE)).all()
            inside = _objects_of_jobs(session, files)
        if not files:
            return False
        self._drop(inside)  # while the rows still name them
        with self._db.write() as session:
            due = session.scalars(select(File).where(File.id.in_([file.id for file in files]), *done)).all()
            for file in due:
                audit.record(
                    session, actor="dispatcher", action="file.purge", target=file.id, project_id=file.project_id
                )
                session.delete(file)
        self._drop([file.path for file in due])
        return len(files) == _AT_ONCE

    def _try_cache(self) -> bool:
        """Remove entries of the cache; skip that while the database is busy: workers write to the cache often."""
        try:
            return self._clear_cache()
        except DatabaseBusy:
            log.warning("cache_not_cleared_up")
            return False

    def _clear_cache(self) -> bool:
        """Remove entries of deleted files, cleared ones, expired ones, and those that exceed the limit."""
        all_of = (_remove_entries_of_deleted_files, _remove_cleared_entries, _remove_expired_entries)
        more = [self._repeat(partial(self._process_page, work)) for work in all_of]
        with self._db.read() as session:
            over = cache.size(session) - self._config.cache_max_bytes

        def evict() -> bool:
            nonlocal over
            if over > 0:
                with self._db.write() as session:
                    over -= cache.evict(session, _AT_ONCE)
            return over > 0

        return self._repeat(evict) or any(more)

    def _remove_answers(self) -> bool:
        """Delete expired answers. There may be many: each interactive client leaves one."""
        responses = self._repeat(
            partial(self._remove_expired, StoredResponse, lambda row: [row.path, f"jobs/{row.id}"])
        )
        return self._repeat(partial(self._remove_expired, StoredCompletion, lambda row: [row.path])) or responses

    def _remove_expired(self, table: type[T], paths: Callable[[T], list[str]]) -> bool:
        with self._db.write() as session:
            expired = session.scalars(select(table).where(table.expires_at <= now()).limit(_AT_ONCE)).all()
            for answer in expired:
                session.delete(answer)
        self._drop([path for answer in expired for path in paths(answer)])
        return len(expired) == _AT_ONCE

    def _measure_sizes(self) -> bool:
        """Note the sizes of objects that were stored before their rows had them, table by table, once."""
        try:
            while self._unmeasured and not self._repeat(partial(self._measure_page, self._unmeasured[0])):
                del self._unmeasured[0]
                self._measured = ""
        except (StorageUnavailable, StorageFull):
            return False  # the storage may be there at the next pass
        return bool(self._unmeasured)

    def _measure_page(self, table: Any) -> bool:
        with self._db.read() as session:
            left = select(table).where(table.id > self._measured, table.bytes.is_(None))
            rows = session.scalars(left.order_by(table.id).limit(_AT_ONCE)).all()
        sizes = {row.id: self._size(row.path) for row in rows}
        with self._db.write() as session:
            for row_id, size in sizes.items():
                unknown = table.id == row_id, table.bytes.is_(None)
                session.execute(update(table).where(*unknown).values(bytes=size), execution_options=UNSEEN)
        if rows:
            self._measured = rows[-1].id
        return len(rows) == _AT_ONCE

    def _size(self, path: str) -> int:
        """Return the size of an object in bytes, 0 when it is gone."""
        try:
            return self._storage.size(path)
        except NotFound:
            return 0

    def _look(self) -> bool:
        """Go on looking for orphans, for a time of its own: nothing waits for that."""
        until = time.monotonic() + self._timings.orphans_look
        try:
            for _ in self._looking or ():
                if time.monotonic() > until:
                    return True
        except _STORAGE:
            log.warning("orphans_not_looked_for")
        self._looking = None
        return False

    def _purge_tuned_models(self) -> bool:
        """Remove the files of deleted models, then note it and write a receipt."""
        with self._db.read() as session:
            models = tuned_models.purgeable(session, _AT_ONCE)
        purged = [model for model in models if self._drop([model.location])]
        with self._db.write() as session:
            for model in purged:
                tuned_models.record_purge(session, model.id)
                audit.record(
                    session,
                    actor="dispatcher",
                    action="model.purge",
                    target=model.id,
                    project_id=model.project_id,
                    details={"name": model.name},
                )
        return len(purged) == _AT_ONCE

    def _remove_uploads(self) -> bool:
        return self._repeat(self._remove_parts)

    def _remove_parts(self) -> bool:
        """Expire uploads whose hour is over, delete the parts of all that are not pending, and what ended long ago."""
        with self._db.write() as session:
            late = Upload.status == "pending", Upload.expires_at <= now()
            session.execute(update(Upload).where(*late).values(status="expired"))
            ended = select(Upload.id).where(Upload.status != "pending")
            parts = session.scalars(select(UploadPart).where(UploadPart.upload_id.in_(ended)).limit(_AT_ONCE)).all()
            for part in parts:
                session.delete(part)
            long_ago = Upload.status.in_(_UPLOADED), Upload.expires_at <= now() - self._config.retention_seconds
            without_parts = ~exists().where(UploadPart.upload_id == Upload.id)
            old = session.scalars(select(Upload.id).where(*long_ago, without_parts).limit(_AT_ONCE)).all()
            session.execute(delete(Upload).where(Upload.id.in_(old)))
        self._drop([part.path for part in parts])
        return max(len(parts), len(old)) == _AT_ONCE

    def _remove_jobs(self) -> bool:
        """Go on with the walk through old jobs."""
        try:
            for goes_on in self._walking or ():
                if not goes_on:
                    return False  # the storage may be there in a minute
                if time.monotonic() > self._until:
                    return True
        except DatabaseBusy:
            self._passes_to_walk = 0  # so that the next pass begins anew
            self._walking = None
            raise
        self._walking = None
        return False

    def _walk(self) -> Iterator[bool]:
        """Remove what is left of jobs from before the retention time; their output files stay.

        Yield True after some of it, and False where the storage has to be asked again later.
        """
        config = self._config
        before, removed = now() - config.retention_seconds, now() - config.job_retention_seconds
        for created in self._pages_of_jobs(before):
            with self._db.read() as session:
                full = select(Job.id).where(Job.id.in_(created), *retention_conditions(config), FULL)
                old = session.scalars(full).all()
            for start in range(0, len(old), _JOBS_AT_ONCE):
                while not self._remove_results(old[start : start + _JOBS_AT_ONCE]):
                    yield False
                yield True
            self._forget_webhooks(created)
            due = [job_id for job_id, at in created.items() if at < removed] if config.job_retention_seconds else []
            for some in page_ids(due):
                with self._db.write() as session:
                    removal.remove(session, some, removed)
                self._db.breathe()
                yield True
            yield True

    def _pages_of_jobs(self, before: float) -> Iterator[dict[str, float]]:
        """Yield the jobs that were created before a time, project by project, the oldest first: id → that time."""
        project_id, after = "", (0.0, "")
        order = (Job.created_at, Job.id)
        while True:
            of_project = select(*order).where(Job.project_id == project_id, tuple_(*order) > after)
            with self._db.read() as session:
                older = of_project.where(Job.created_at < before).order_by(*order).limit(_WALKED_AT_ONCE)
                rows = session.execute(older).all()
                if not rows:
                    following = session.scalar(select(func.min(Job.project_id)).where(Job.project_id > project_id))
            if rows:
                after = (rows[-1].created_at, rows[-1].id)
                yield {row.id: row.created_at for row in rows}
            elif following is None:
                return
            else:
                project_id, after = following, (0.0, "")

    def _remove_results(self, job_ids: Sequence[str]) -> bool:
        """Remove shards, segments and objects of these jobs, the first shard first.

        See `jobs.batches.batches.results_known`. A job whose objects stay keeps its other rows, and comes again.
        """
        with self._db.write() as session:
            session.execute(delete(Shard).where(Shard.job_id.in_(job_ids), Shard.n == 0))
        self._db.breathe()
        emptied = [job_id for job_id in job_ids if self._drop([f"jobs/{job_id}"])]
        for table in (Shard, Segment):
            while self._delete(table, table.job_id.in_(emptied)):
                self._db.breathe()
        return len(emptied) == len(job_ids)

    def _forget_webhooks(self, job_ids: Collection[str]) -> None:
        """Remove the webhook URLs and secrets of these jobs, once the log of their deliveries is gone too."""
        of_event = Event.subject_id == Job.id, Delivery.event_id == Event.id
        has_delivery = exists().where(*of_event, Delivery.endpoint_id.is_(None))
        hooked = Job.id.in_(job_ids), Job.webhook_url.is_not(None), Job.state.in_(TERMINAL)
        with self._db.read() as session:
            done = session.scalars(select(Job.id).where(*hooked, ~has_delivery)).all()
        if done:
            with self._db.write() as session:
                session.execute(update(Job).where(Job.id.in_(done)).values(webhook_url=None, webhook_secret=None))
            self._db.breathe()

    def _remove_audit_rows(self, session: Session) -> int:
        """Remove some of the oldest rows of the audit log; return their number."""
        if not self._config.audit_retention_seconds:
            return 0
        before = now() - self._config.audit_retention_seconds
        return audit.remove_oldest(session, audit_key(self._config), before, _AT_ONCE)

    def _remove_rows(self) -> bool:
        if not self._rows_due:
            return False
        before = now() - self._config.retention_seconds
        keys = now() - self._config.idempotency_seconds
        old: list[tuple[Any, ...]] = [
            (Attempt, Attempt.at < before),
            (Delivery, Delivery.state != "pending", Delivery.created_at < before),
            (Idempotency, Idempotency.created_at < keys),
            (ApiKey, *idle_login_keys()),
            (RequestMinute, RequestMinute.minute < now() - _REQUESTS_SECONDS),
            (ShadowMinute, ShadowMinute.minute < now() - _REQUESTS_SECONDS),
            (ShadowAnswer, ShadowAnswer.created_at < now() - KEPT_SECONDS),
        ]
        more = [self._repeat(self._fail_lost_deliveries), *(self._repeat(partial(self._delete, *rows)) for rows in old)]
        self._rows_due = self._repeat(partial(self._forget_events, before)) or any(more)
        return self._rows_due

    def _delete(self, table: type[Base], *conditions: ColumnElement[bool]) -> bool:
        """Delete a page of rows. They are found before the write transaction, which is short so."""
        key = list(table.__table__.primary_key)
        with self._db.read() as session:
            rows = session.execute(select(*key).where(*conditions).limit(_AT_ONCE)).all()
        if rows:
            still = tuple_(*key).in_([tuple(row) for row in rows]), *conditions
            with self._db.write() as session:
                session.execute(delete(table).where(*still), execution_options=UNSEEN)
        return len(rows) == _AT_ONCE

    def _forget_events(self, before: float) -> bool:
        """Delete a page of old events; return whether there may be more."""
        with self._db.read() as session:
            rows = feed.forgettable(session, before, _AT_ONCE)
        if rows:
            with self._db.write() as session:
                feed.forget(session, rows, before)
        return len(rows) == _AT_ONCE

    def _fail_lost_deliveries(self) -> bool:
        with self._db.read() as session:
            lost = webhook_endpoints.deliveries_to_fail(session, _AT_ONCE)
        if lost:
            with self._db.write() as session:
                webhook_endpoints.fail_parked(session, lost)
        return len(lost) == _AT_ONCE

    def _drop(self, paths: Sequence[str]) -> bool:
        """Delete objects; return whether all of them are gone."""
        whole = True
        for path in paths:
            try:
                self._storage.delete(path)
            except _STORAGE:
                log.warning("purge_failed", extra={"path": path})
                whole = False
        return whole


def _objects_of_jobs(session: Session, files: Sequence[File]) -> list[str]:
    """Return the objects that ended jobs have of deleted files: segments of results, a retry's copy of the input."""
    ended = Job.state.in_(TERMINAL)
    names = {file.filename.rpartition("_")[0] for file in files if file.purpose == batches.OUTPUT}
    result = or_(File.id == Job.output_file_id, File.id == Job.error_file_id), File.deleted_at.is_(None)
    segments = select(Segment.path).join(Job, Job.id == Segment.job_id)
    segments = segments.where(Job.id.in_(names), ended, ~exists().where(*result))
    copies = select(Job.input_path).where(
        Job.input_file_id.in_([file.id for file in files]), Job.retry_of.is_not(None), ended
    )
    copied = [path for path in session.scalars(copies) if path and path.startswith("jobs/")]
    return [*session.scalars(segments), *copied]


def _remove_entries_of_deleted_files(session: Session) -> int:
    removed = cache.remove_deleted(session, _AT_ONCE)
    for (file_id, project_id), entries in removed.items():
        _receipt(session, file_id, project_id, entries)
    return sum(removed.values())


def _remove_cleared_entries(session: Session) -> int:
    removed = cache.remove_cleared(session, _AT_ONCE)
    for project_id, entries in removed.items():
        _receipt(session, project_id, project_id, entries)
    return sum(removed.values())


def _remove_datasets(session: Session) -> int:
    return datasets.remove_unused(session, _AT_ONCE)


def _remove_expired_entries(session: Session) -> int:
    return cache.remove_expired(session, now(), _AT_ONCE)


def _receipt(session: Session, target: str, project_id: str, entries: int) -> None:
    details = {"entries": entries}
    audit.record(
        session, actor="dispatcher", action="cache.purge", target=target, project_id=project_id, details=details
    )


def _hide(session: Session) -> int:
    """Mark expired files and stores for deletion, files in stores too; return the number of files."""
    expired = File.expires_at <= now(), File.deleted_at.is_(None), ~lookup.has_schedule()
    ids = session.scalars(select(File.id).where(*expired).order_by(File.id).limit(_AT_ONCE)).all()
    session.execute(update(File).where(File.id.in_(ids)).values(deleted_at=now()))
    attachments.remove_everywhere(session, ids)
    attachments.expire(session, now(), _AT_ONCE)
    return len(ids)
