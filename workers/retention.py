"""What is no longer needed goes: expired files and answers, deleted files, with what jobs hold of them, abandoned
uploads, old keys, the inside of old jobs and their webhooks, what of the cache cannot be found any more.

Rows go first, then bytes; new bytes come before their row. A crash between leaves bytes that nobody points to:
what two looks an hour apart find so is removed. What a job holds of a deleted file goes before the file's row. A file's
bytes stay while a live job reads it. Jobs and audit rows stay for ever.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import delete, exists, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from jobs import attachments, audit, cached, deliveries
from jobs.clock import now
from jobs.db import Database
from jobs.errors import DatabaseBusy, StorageAway
from jobs.models import (
    Attempt,
    Base,
    Conversation,
    Delivery,
    Event,
    File,
    Idempotency,
    Job,
    KeptCompletion,
    KeptResponse,
    Schedule,
    Segment,
    Shard,
    Upload,
    UploadPart,
    VectorStore,
)
from jobs.payloads import BATCH_OUTPUT
from jobs.settings import Settings
from jobs.states import LIVE, TERMINAL
from jobs.storage import Storage

log = logging.getLogger(__name__)
T = TypeVar("T", KeptResponse, KeptCompletion)
_AT_ONCE = 200
_PAGES = 20
_ORPHAN_PASSES = 60  # once an hour
_UNTOUCHED_SECONDS = 3600.0  # whoever writes a file writes to it more often


class Retention:
    """Each pass does a bounded amount; the next one goes on."""

    def __init__(self, config: Settings, db: Database, storage: Storage) -> None:
        self._config = config
        self._db = db
        self._storage = storage
        self._passes = 0
        self._suspects: frozenset[str] = frozenset()

    def run(self) -> None:
        self._passes += 1
        if self._passes % _ORPHAN_PASSES == 0:
            self._orphans_once()
            self.forget_webhooks()
        for step in (self._cache_if_free, self._files, self._answers, self._uploads, self._old_jobs, self._old_rows):
            step()
            self._db.breathe()

    def _files(self) -> None:
        """Expired files are hidden, but not a schedule's; the bytes of hidden ones go when no live job reads them."""
        for _ in range(_PAGES):
            with self._db.write() as session:
                hidden = _hide(session)
            self._db.breathe()
            if hidden < _AT_ONCE:
                break
        read = exists().where(Job.input_file_id == File.id, Job.state.in_(LIVE))
        done = File.deleted_at.is_not(None), ~read, *cached.left_nothing()
        with self._db.read() as session:
            files = session.scalars(select(File).where(*done).limit(_AT_ONCE)).all()
            inside = _inside(session, files)
        self._drop(inside)  # as long as the rows say whose they are
        with self._db.write() as session:
            gone = session.scalars(select(File).where(File.id.in_([file.id for file in files]), *done)).all()
            for file in gone:
                audit.record(
                    session, actor="dispatcher", action="file.purge", target=file.id, project_id=file.project_id
                )
                session.delete(file)
        self._drop([file.path for file in gone])

    def _cache_if_free(self) -> None:
        """Workers write to it all the time; the rest is not to wait for the cache another minute."""
        try:
            self._cache()
        except DatabaseBusy:
            log.warning("cache_not_cleared_up")

    def _cache(self) -> None:
        """What came from deleted files, what its project has cleared, what has expired, what there is no room for."""
        self._repeat(_remove_deleted)
        self._repeat(_remove_cleared)
        self._repeat(lambda session: cached.remove_expired(session, now(), _AT_ONCE))
        with self._db.read() as session:
            over = cached.size(session) - self._config.cache_max_bytes
        for _ in range(_PAGES):
            if over <= 0:
                return
            with self._db.write() as session:
                over -= cached.evict(session, _AT_ONCE)
            self._db.breathe()

    def _repeat(self, work: Callable[[Session], int]) -> None:
        """While it finds as much as it may do at once."""
        for _ in range(_PAGES):
            with self._db.write() as session:
                done = work(session)
            if done < _AT_ONCE:
                return
            self._db.breathe()

    def _answers(self) -> None:
        """Each waiting client leaves one, so there may be many."""
        self._expired(KeptResponse, lambda response: [response.path, f"jobs/{response.id}"])
        self._expired(KeptCompletion, lambda completion: [completion.path])

    def _expired(self, table: type[T], paths: Callable[[T], list[str]]) -> None:
        for _ in range(_PAGES):
            with self._db.write() as session:
                gone = session.scalars(select(table).where(table.expires_at <= now()).limit(_AT_ONCE)).all()
                for answer in gone:
                    session.delete(answer)
            self._drop([path for answer in gone for path in paths(answer)])
            if len(gone) < _AT_ONCE:
                return
            self._db.breathe()

    def _orphans_once(self) -> None:
        try:
            self.orphans()
        except StorageAway:
            log.warning("orphans_not_looked_for")

    def orphans(self) -> None:
        """Remove what is without a row and was at the last look, an hour ago, too, and files that are unfinished.

        A crash leaves single files; a database that is restored from a backup knows nothing of whole jobs and stores.
        """
        if swept := self._storage.sweep(now() - _UNTOUCHED_SECONDS):
            log.warning("unfinished_files_removed", extra={"files": swept})
        found = self._unowned("files/", "files/", File.path) | self._unowned("responses/", "", KeptResponse.id)
        found |= self._unowned("completions/", "", KeptCompletion.id)
        found |= self._unowned("conversations/", "conversations/", Conversation.path)
        found |= self._unowned("uploads/", "uploads/", UploadPart.path)
        for folder, column in (("jobs", Job.id), ("documents", VectorStore.id)):
            found |= {f"{folder}/{name}" for name in self._unknown(self._storage.folders(folder), column)}
        old = sorted(found & self._suspects)
        self._suspects = frozenset(found)
        if old:
            log.warning("orphans_removed", extra={"files": len(old)})
        self._drop(old)

    def _unowned(self, folder: str, prefix: str, column: InstrumentedAttribute[str]) -> set[str]:
        """What lies in a folder and whose name, after `prefix`, no row has in its `column`."""
        names = [prefix + path.removeprefix(folder) for path in self._storage.list(folder.rstrip("/"))]
        return {folder + name.removeprefix(prefix) for name in self._unknown(names, column)}

    def _unknown(self, names: Sequence[str], column: InstrumentedAttribute[str]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(names), _AT_ONCE):
            page = names[start : start + _AT_ONCE]
            with self._db.read() as session:
                found.update(set(page) - set(session.scalars(select(column).where(column.in_(page)))))
        return found

    def _uploads(self) -> None:
        """Pending uploads whose hour is over, and the parts of all that are not pending."""
        with self._db.write() as session:
            late = Upload.status == "pending", Upload.expires_at <= now()
            session.execute(update(Upload).where(*late).values(status="expired"))
            ended = select(Upload.id).where(Upload.status != "pending")
            parts = session.scalars(select(UploadPart).where(UploadPart.upload_id.in_(ended)).limit(_AT_ONCE)).all()
            for part in parts:
                session.delete(part)
        self._drop([part.path for part in parts])

    def _old_jobs(self) -> None:
        """Shards, segments and their objects of jobs that ended long ago. Their output files live on by themselves."""
        before = now() - self._config.retention_seconds
        with self._db.read() as session:
            inside = or_(exists().where(Shard.job_id == Job.id), exists().where(Segment.job_id == Job.id))
            ended = func.coalesce(Job.completed_at, Job.failed_at, Job.expired_at, Job.cancelled_at)
            old = session.scalars(select(Job.id).where(Job.state.in_(TERMINAL), ended < before, inside).limit(5)).all()
        for job_id in old:
            self._empty(job_id)
            self._drop([f"jobs/{job_id}"])

    def _empty(self, job_id: str) -> None:
        """The first shard goes first: see `jobs.retries`."""
        for table in (Shard, Segment):
            while True:
                with self._db.write() as session:
                    inside = select(table.n).where(table.job_id == job_id).order_by(table.n)
                    numbers = session.scalars(inside.limit(_AT_ONCE)).all()
                    session.execute(delete(table).where(table.job_id == job_id, table.n.in_(numbers)))
                if not numbers:
                    break
                self._db.breathe()

    def forget_webhooks(self) -> None:
        """Where old jobs told of themselves, and the secrets that signed it, once the log of that is gone too."""
        owed = select(Delivery.job_id).where(Delivery.endpoint_id.is_(None), Delivery.job_id.is_not(None))
        old = Job.created_at < now() - self._config.retention_seconds
        done = select(Job.id).where(Job.webhook_url.is_not(None), Job.state.in_(TERMINAL), old, Job.id.not_in(owed))
        with self._db.read() as session:
            ids = session.scalars(done.limit(_AT_ONCE * _PAGES)).all()
        for start in range(0, len(ids), _AT_ONCE):
            some = Job.id.in_(ids[start : start + _AT_ONCE])
            with self._db.write() as session:
                session.execute(update(Job).where(some).values(webhook_url=None, webhook_secret=None))
            self._db.breathe()

    def _old_rows(self) -> None:
        before = now() - self._config.retention_seconds
        keys = now() - self._config.idempotency_seconds
        with self._db.write() as session:
            deliveries.fail_lost(session, _AT_ONCE)
            _delete_old(session, Attempt, Attempt.id, Attempt.at < before)
            _delete_old(session, Delivery, Delivery.id, Delivery.state != "pending", Delivery.created_at < before)
            referred = exists().where(Delivery.event_id == Event.id)
            _delete_old(session, Event, Event.id, Event.created_at < before, ~referred)
            session.execute(delete(Idempotency).where(Idempotency.created_at < keys))

    def _drop(self, paths: Sequence[str]) -> None:
        for path in paths:
            try:
                self._storage.delete(path)
            except StorageAway:
                log.warning("purge_failed", extra={"path": path})


def _inside(session: Session, files: Sequence[File]) -> list[str]:
    """What ended jobs still hold of deleted files: the segments of their results, a retry's copy of the input."""
    ended = Job.state.in_(TERMINAL)
    names = {file.filename.rpartition("_")[0] for file in files if file.purpose == BATCH_OUTPUT}
    result = or_(File.id == Job.output_file_id, File.id == Job.error_file_id), File.deleted_at.is_(None)
    segments = select(Segment.path).join(Job, Job.id == Segment.job_id)
    segments = segments.where(Job.id.in_(names), ended, ~exists().where(*result))
    copies = select(Job.input_path).where(
        Job.input_file_id.in_([file.id for file in files]), Job.retry_of.is_not(None), ended
    )
    copied = [path for path in session.scalars(copies) if path and path.startswith("jobs/")]
    return [*session.scalars(segments), *copied]


def _remove_deleted(session: Session) -> int:
    gone = cached.remove_deleted(session, _AT_ONCE)
    for (file_id, project_id), entries in gone.items():
        _receipt(session, file_id, project_id, entries)
    return sum(gone.values())


def _remove_cleared(session: Session) -> int:
    gone = cached.remove_cleared(session, _AT_ONCE)
    for project_id, entries in gone.items():
        _receipt(session, project_id, project_id, entries)
    return sum(gone.values())


def _receipt(session: Session, target: str, project_id: str, entries: int) -> None:
    details = {"entries": entries}
    audit.record(
        session, actor="dispatcher", action="cache.purge", target=target, project_id=project_id, details=details
    )


def _hide(session: Session) -> int:
    """Expired files, also from vector stores; what is in expired stores. How many files there were."""
    scheduled = exists().where(Schedule.input_file_id == File.id)
    expired = File.expires_at <= now(), File.deleted_at.is_(None), ~scheduled
    ids = session.scalars(select(File.id).where(*expired).order_by(File.id).limit(_AT_ONCE)).all()
    session.execute(update(File).where(File.id.in_(ids)).values(deleted_at=now()))
    attachments.remove_everywhere(session, ids)
    attachments.expire(session, now(), _AT_ONCE)
    return len(ids)


def _delete_old(session: Session, table: type[Base], key: Any, *conditions: Any) -> None:
    ids = session.scalars(select(key).where(*conditions).limit(_AT_ONCE)).all()
    if ids:
        session.execute(delete(table).where(key.in_(ids)))
