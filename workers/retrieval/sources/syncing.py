"""Plan a sync: list a source and compare it; fetch and attach new and changed items.

    entries ─┬─ same fingerprint ─▶ unchanged, not read; failed ones are tried again if a client asks
             ├─ fetched, same content ─▶ unchanged
             ├─ fetched, other content ─▶ bytes, durable ──▶ one transaction: file, item, its line of the job
             └─ cannot be read ─▶ failed; the store keeps its version
    items without an entry ─▶ removed, but only if the whole source was listed and is not empty

Each item is written in its own transaction under the job's claim; writing it twice is harmless. After a worker's death
the next attempt lists again and skips items that this job has written; retention removes bytes without a row.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import WRITE_ROWS
from jobs.errors import Expired, ProjectFull
from jobs.files.tables import File
from jobs.ids import new_id
from jobs.ledger import audit, ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import JobState
from jobs.retrieval import attachments, indexes, source_items, sources
from jobs.retrieval.attachments import Attachment, is_over
from jobs.retrieval.documents import PARTLY
from jobs.retrieval.indexes import index_of
from jobs.retrieval.source_items import ADDED, CHANGED, FAILED, REMOVED, UNCHANGED, digest, readable
from jobs.retrieval.tables import Source, SourceItem, VectorStore, VectorStoreFile
from jobs.usage import stored_bytes
from jobs.usage.project_limits import limit_of
from workers.retrieval.sources.base import (
    Fetched,
    ItemDeleted,
    ItemFailed,
    SourceEntry,
    SourceReader,
    SourceUnavailable,
)
from workers.retrieval.sources.bucket import BucketReader
from workers.retrieval.sources.folder import FolderReader
from workers.retrieval.sources.web import PageReader
from workers.runtime.attempts import Abandoned, stop_all
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle

# ── what a sync writes ──

T = TypeVar("T")
_PURPOSE: Final = "assistants"
Facts = dict[str, Any]
INDEX_REMOVED: Final[Facts] = {
    "code": "index_removed",
    "message": "The index that the sync had begun to fill was removed meanwhile: sync again.",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """The bytes of an item, durable under the id of a file that has no row yet."""

    file_id: str
    size: int
    sha256: str
    fetched: Fetched

    @property
    def path(self) -> str:
        return path_of(self.file_id)


class Deleted(Exception):
    """A client has deleted the file since it was looked up."""


class SourceSyncRecorder:
    """Write the rows of one sync. `line` is the job's next line; `written` counts the recorded items."""

    def __init__(self, context: Context, claim: JobClaim, source: Source, index: VectorStore, line: int) -> None:
        self.context = context
        self.claim = claim
        self.source = source
        self.index = index
        self.line = line
        self.written = 0
        self.actor = f"source:{source.id}"

    def attach(self, entry: SourceEntry, file_id: str, fingerprint: Facts | None, stored: Stored | None) -> None:
        """Add a file as a line of the job; with `stored` the file is new, and the item's newest version.

        Raises Deleted, Expired, SourceUnavailable.
        """

        def attach(session: Session, item: SourceItem) -> None:
            if stored is not None:
                self._insert(session, stored)
                item.previous_id = self._visible_version(session, item)
                item.file_id, item.sha256 = file_id, stored.sha256
            alive = File.id == file_id, File.deleted_at.is_(None)
            filename = session.scalar(select(File.filename).where(*alive))
            if filename is None:
                raise Deleted
            attachment = Attachment(file_id, filename, self.source.chunking, self.source.attributes)
            before = session.get(VectorStoreFile, (self.index.id, file_id))
            known = item.previous_id or (before and before.document)
            attachments.attach(session, self.index, self.claim.job, [attachment], self.line)
            self._stamp(item, CHANGED if known else ADDED, fingerprint)

        self._once(entry, attach, lock=True)
        self.line += 1

    def settle(self, entry: SourceEntry, fingerprint: Facts | None) -> None:
        """Record an item as unchanged, for the next sync and for the next attempt at this one."""
        self._once(entry, lambda _, item: self._stamp(item, UNCHANGED, fingerprint))

    def fail(self, entry: SourceEntry, failure: ItemFailed) -> None:
        """Record why an item failed. The store keeps its version."""

        def fail(_: Session, item: SourceItem) -> None:
            error = {"code": failure.code, "message": failure.message}
            item.job_id, item.change, item.error = self.claim.job.id, FAILED, error

        self._once(entry, fail)

    def record_removal(self, entry: SourceEntry) -> None:
        """Remove the versions of an item, and record that it existed: its absence is not a failure.

        Raises Expired, SourceUnavailable.
        """

        def record_removal(session: Session, item: SourceItem) -> None:
            self._count_removals(session, sources.strip(session, [item], actor=self.actor))
            self._stamp(item, REMOVED, None)

        self._once(entry, record_removal, lock=True)

    def remove(self, digests: Sequence[str]) -> None:
        """Remove the items that are no longer listed."""

        def remove(session: Session) -> None:
            indexes.lock(session, self.source.store_id)  # before items, as publishing does
            conditions = SourceItem.source_id == self.source.id, SourceItem.digest.in_(digests)
            items = session.scalars(
                select(SourceItem).where(*conditions).order_by(SourceItem.digest).with_for_update()
            ).all()
            self._count_removals(session, sources.strip(session, items, actor=self.actor))
            session.execute(delete(SourceItem).where(*conditions))

        self.write(remove)

    def note(self, **values: Any) -> None:
        """Set values on the source's own row."""
        statement = update(Source).where(Source.id == self.source.id)
        self.write(lambda session: session.execute(statement.values(values)))

    def reject(self, error: Facts) -> None:
        """Fail the job before anything was done."""
        errors = [{**error, "line": None, "param": None}]

        def reject(session: Session) -> None:
            session.execute(update(Source).where(Source.id == self.source.id).values(error=error))
            ledger.reject(session, self.claim, errors)

        stop_all(self.context, self.claim, JobState.FAILED, errors)
        self.write(reject)

    def write(self, work: Callable[[Session], T]) -> T:
        """Run a transaction under the claim, which ends with the source. Raises ClaimLost."""

        def write_claimed(session: Session) -> T:
            ledger.assert_claim(session, self.claim)
            return work(session)

        done = self.context.db.retrying(write_claimed, self.context.stop)
        self.context.db.breathe(self.context.stop)
        return done

    def _once(self, entry: SourceEntry, work: Callable[[Session, SourceItem], None], *, lock: bool = False) -> None:
        """Call `work` on the item or a new one, unless this job has written it. `lock`: the store is locked too."""

        def once(session: Session) -> None:
            if lock:  # before items, as a switch does
                self._lock(session)
            key = (self.source.id, digest(entry.key))
            item = session.get(SourceItem, key, with_for_update=True)
            if item is None:
                item = SourceItem(source_id=key[0], digest=key[1], key=entry.key, job_id="", change="")
                session.add(item)
            if item.job_id != self.claim.job.id:  # otherwise it was committed before and the reply was lost
                work(session, item)

        self.write(once)
        self.written += 1

    def _lock(self, session: Session) -> None:
        """Lock the store, and check that its index is still there. Raises SourceUnavailable, Expired."""
        if indexes.lock(session, self.source.store_id) is None:
            raise Expired(f"The vector store '{self.source.store_id}' is gone.", param="vector_store_id")
        if indexes.alive(session, self.index.id) is None:
            raise SourceUnavailable(**INDEX_REMOVED)

    def _insert(self, session: Session, stored: Stored) -> None:
        columns = {"bytes": stored.size, "sha256": stored.sha256}
        row = File(
            id=stored.file_id,
            project_id=self.source.project_id,
            purpose=_PURPOSE,
            filename=stored.fetched.filename,
            path=stored.path,
            created_at=now(),
            **columns,
        )
        session.add(row)
        session.flush()
        audit.record(
            session,
            actor=self.actor,
            action="file.create",
            target=stored.file_id,
            project_id=self.source.project_id,
            details={**columns, "source": self.source.id},
        )

    def _visible_version(self, session: Session, item: SourceItem) -> str | None:
        """Return the version that stays visible until the new one is complete; delete one that was never published."""
        ids = [file_id for file_id in (item.file_id, item.previous_id) if file_id]
        in_use = session.get_one(VectorStore, self.source.store_id).current_id  # which may not be the sync's index
        theirs = VectorStoreFile.store_id == in_use, VectorStoreFile.id.in_(ids)
        complete = set(
            session.scalars(select(VectorStoreFile.id).where(*theirs, VectorStoreFile.document.is_not(None)))
        )
        found_id = next((file_id for file_id in ids if file_id in complete), None)
        others = [file_id for file_id in ids if file_id != found_id]
        if others:
            source_items.drop(session, others, actor=self.actor)
        return found_id

    def _count_removals(self, session: Session, count: int) -> None:
        counted = update(Source).where(Source.id == self.source.id).values(removed=Source.removed + count)
        session.execute(counted)

    def _stamp(self, item: SourceItem, change: str, fingerprint: Facts | None) -> None:
        item.job_id, item.change, item.fingerprint, item.error = self.claim.job.id, change, fingerprint, None


def path_of(file_id: str) -> str:
    """Return the path of an uploaded file with this id."""
    return f"files/{file_id}"


# ── where its items come from ──


def open_reader(context: Context, source: Source) -> SourceReader:
    """Return the reader of a source. It checks at each read what the operator allows."""
    config, spec = context.config, source.spec
    if source.type == "folder":
        settled = context.timings.source_settled
        return FolderReader(config.source_folders, config.own_folders, spec["path"], spec["glob"], settled)
    if source.type == "s3":
        return BucketReader(config.source_s3, spec["prefix"], {})
    return PageReader(tuple(spec["urls"]), context.timings.source_fetch, config.source_allow_private)


# ── the sync ──

log = logging.getLogger(__name__)
_PASSING: Final = "server_error"  # the error code of files that failed for reasons of the server


class _Overdue(Exception):
    """The sync has used up its time. Attached items are complete; the next sync continues."""


class _Unchanged(Exception):
    """The item is unchanged; nothing was written."""


class _SinkBroke(Exception):
    """Our own storage refused the bytes."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


@dataclass(frozen=True, slots=True)
class _KnownItem:
    """The store's version of an item. `settled`: nothing to do unless its content changes."""

    item: SourceItem
    has_file: bool
    settled: bool


def gather(context: Context, claim: JobClaim, handle: ClaimHandle) -> int | None:
    """Attach to the claimed job what the source has and the store lacks; return its lines, or None if it failed.

    Raises ClaimLost, Abandoned, StorageFull, StorageUnavailable.
    """
    with context.db.read() as session:
        source = session.get(Source, claim.job.payload["source_id"])
        store = session.get(VectorStore, claim.job.payload["store_id"])
        index = indexes.alive(session, index_of(claim.job.payload))
        last = session.scalar(select(func.max(VectorStoreFile.line)).where(VectorStoreFile.job_id == claim.job.id))
    lines = 0 if last is None else last + 1
    if source is None or source.deleted_at is not None or store is None or is_over(store):
        return lines
    if index is None:
        SourceSyncRecorder(context, claim, source, store, lines).reject(INDEX_REMOVED)
        return None
    if context.low_on_disk():
        raise Abandoned(5.0, "disk")
    return _Sync(context, handle, SourceSyncRecorder(context, claim, source, index, lines)).run()


class _Sync:
    """One claim on the job of one sync."""

    def __init__(self, context: Context, handle: ClaimHandle, recorder: SourceSyncRecorder) -> None:
        self.context = context
        self.config = context.config
        self.handle = handle
        self.recorder = recorder
        self.source = recorder.source
        self.reader = open_reader(context, recorder.source)
        self.again = bool(recorder.claim.job.payload.get("again"))
        self.began = time.monotonic()
        self.seen = self.failed = 0
        self.deadline = 0.0

    def run(self) -> int | None:
        began = self.source.began_at or now()
        self.deadline = began + self.config.source_seconds
        self.recorder.note(began_at=began)
        error: dict[str, Any] | None = None
        try:
            self._sync_items()
        except SourceUnavailable as reason:
            error = {"code": reason.code, "message": reason.message}
        except _Overdue:
            seconds = f"{self.config.source_seconds:g}"
            error = {"code": "source_timeout", "message": f"Not everything could be read within {seconds} seconds."}
        except Expired:  # the store expired meanwhile
            return self.recorder.line
        if error is not None and not self.recorder.line:
            self.recorder.reject(error)
            return None
        if error is None and self.failed and self.failed == self.seen:
            error = self._first_failure()
        self.recorder.note(seen=self.seen, error=error)
        log.info("source_read", extra={"source": self.source.id, "seen": self.seen, "attached": self.recorder.line})
        return self.recorder.line

    def _sync_items(self) -> None:
        entries = self.reader.entries(self.config.source_max_items, self._look)
        if not entries and self._has_items():
            # a mount that is unavailable looks like an empty folder, a mistaken prefix like an empty bucket
            raise SourceUnavailable("source_empty", "Nothing is there now, where something was: nothing was removed.")
        failing = self._failed_digests()
        entries.sort(
            key=lambda entry: digest(entry.key) in failing
        )  # items that failed before come last, because they may hang
        for start in range(0, len(entries), WRITE_ROWS):
            self._sync_page({digest(entry.key): entry for entry in entries[start : start + WRITE_ROWS]})
        self._remove_missing({digest(entry.key) for entry in entries})

    def _has_items(self) -> bool:
        brought = SourceItem.source_id == self.source.id, SourceItem.file_id.is_not(None)
        with self.context.db.read() as session:
            return session.scalar(select(SourceItem.digest).where(*brought).limit(1)) is not None

    def _failed_digests(self) -> set[str]:
        """Return the digests of the items that failed the last time."""
        conditions = SourceItem.source_id == self.source.id, SourceItem.change == FAILED
        with self.context.db.read() as session:
            return set(session.scalars(select(SourceItem.digest).where(*conditions)))

    def _sync_page(self, entries: dict[str, SourceEntry]) -> None:
        known = self._find_known(list(entries))
        for name, entry in entries.items():
            self._look()
            self._sync_item(entry, known.get(name))
            if self.recorder.written and time.monotonic() - self.began > self.context.timings.sync_shift:
                raise Abandoned

    def _find_known(self, digests: list[str]) -> dict[str, _KnownItem]:
        row = VectorStoreFile
        of_store = (row.store_id == self.recorder.index.id) & (row.id == SourceItem.file_id)
        alive = (File.id == SourceItem.file_id) & File.deleted_at.is_(None)
        rows = (
            select(SourceItem, File.id, row.status, row.error_code, row.recipe)
            .outerjoin(File, alive)
            .outerjoin(VectorStoreFile, of_store)
            .where(SourceItem.source_id == self.source.id, SourceItem.digest.in_(digests))
        )
        with self.context.db.read() as session:
            return {
                item.digest: _KnownItem(item, file_id is not None, self._is_settled(status, code, recipe))
                for item, file_id, status, code, recipe in session.execute(rows)
            }

    def _is_settled(self, status: str | None, code: str | None, recipe: str | None) -> bool:
        """Return whether nothing is to be done, also after a refusal or a partial parse, which would repeat.

        A client may ask `again`: the installation, its limits or the machine's load may have changed.
        """
        if status == attachments.FAILED:
            return code != _PASSING and not self.again
        if status == attachments.COMPLETED and self.again:
            return not (recipe or "").startswith(PARTLY)
        return status in (attachments.COMPLETED, attachments.IN_PROGRESS)

    # ── one item ──

    def _sync_item(self, entry: SourceEntry, known: _KnownItem | None) -> None:
        if known is not None and known.item.job_id == self.recorder.claim.job.id:
            self._count(known.item.change)
            return
        try:
            self._bring(entry, known)
        except ItemDeleted as deleted:
            if known is not None and (known.item.file_id or known.item.change == REMOVED):
                self.recorder.record_removal(entry)
            else:
                self._fail(entry, ItemFailed("not_found", str(deleted)))
        except ItemFailed as failure:
            self._fail(entry, failure)

    def _fail(self, entry: SourceEntry, failure: ItemFailed) -> None:
        self.recorder.fail(entry, failure)
        self._count(FAILED)

    def _count(self, change: str = "") -> None:
        self.seen += change != REMOVED
        self.failed += change == FAILED

    def _bring(self, entry: SourceEntry, known: _KnownItem | None) -> None:
        """Fetch one item, and attach it where it is new or has changed. Raises ItemGone, ItemFailed."""
        if entry.fault is not None:
            raise entry.fault
        self._check_size(entry.size)
        stored = self._refetch(entry, known) if known and known.has_file else self._fetch(entry, None)
        if stored is not None:
            self.recorder.attach(entry, stored.file_id, stored.fetched.fingerprint, stored)
        self._count()

    def _refetch(self, entry: SourceEntry, known: _KnownItem) -> Stored | None:
        """Fetch an item that the store has; return None where nothing new was stored."""
        before = known.item.fingerprint
        same = before is not None and before == entry.fingerprint
        if same and known.settled and known.item.change != FAILED:
            return None
        stored = None if same else self._fetch(entry, before)
        if stored is not None and stored.sha256 != known.item.sha256:
            return stored
        if stored is not None:
            self.context.storage.delete(stored.path)
        fingerprint = stored.fetched.fingerprint if stored else before
        if known.settled:
            self.recorder.settle(entry, fingerprint)
            return None
        try:
            self.recorder.attach(entry, str(known.item.file_id), fingerprint, None)
        except Deleted:
            return self._fetch(entry, None)
        return None

    def _check_size(self, size: int) -> None:
        limit = self.config.file_max_bytes
        if size > limit:
            raise ItemFailed("file_too_large", f"It has more than {limit} bytes.")

    def _fetch(self, entry: SourceEntry, known: dict[str, Any] | None) -> Stored | None:
        """Fetch an item into storage; return None if it is unchanged. An interrupted download leaves nothing."""
        file_id = new_id("file-")
        size, sha = 0, hashlib.sha256()
        try:
            with self.context.storage.writer(path_of(file_id)) as handle:

                def take(chunk: bytes) -> None:
                    nonlocal size
                    self._look()
                    size += len(chunk)
                    self._check_size(size)
                    sha.update(chunk)
                    try:
                        handle.write(chunk)
                    except Exception as error:  # the source must not take it for its own error
                        raise _SinkBroke(error) from error

                fetched = self._fetch_entry(entry, known, take)
                self._reserve(size)
        except _Unchanged:
            return None
        return Stored(file_id, size, sha.hexdigest(), fetched)

    def _reserve(self, size: int) -> None:
        """Add a fetched file to what its project stores. Raises ItemFailed if that is too much."""
        db, project_id = self.context.db, self.source.project_id
        with db.read() as session:
            limit = limit_of(session, self.config, project_id, "max_bytes")
        try:
            stored_bytes.check(db, project_id, size, limit)
            db.retrying(lambda session: stored_bytes.reserve(session, project_id, size, limit), self.context.stop)
        except ProjectFull as full:
            raise ItemFailed("project_storage_full", full.message) from full

    def _fetch_entry(self, entry: SourceEntry, known: dict[str, Any] | None, take: Callable[[bytes], None]) -> Fetched:
        try:
            fetched = self.reader.fetch(entry, known, take)
        except _SinkBroke as broke:
            raise broke.error from None
        if fetched is None:
            raise _Unchanged
        return fetched

    # ── deleted items, and the claim ──

    def _remove_missing(self, there: set[str]) -> None:
        for page in self._digests():
            deleted = [name for name in page if name not in there]
            for start in range(0, len(deleted), sources.ITEMS_AT_ONCE):
                self._look()
                self.recorder.remove(deleted[start : start + sources.ITEMS_AT_ONCE])

    def _digests(self) -> Iterator[Sequence[str]]:
        last = ""
        while True:
            after = SourceItem.source_id == self.source.id, SourceItem.digest > last
            statement = select(SourceItem.digest).where(*after).order_by(SourceItem.digest).limit(WRITE_ROWS)
            with self.context.db.read() as session:
                page = session.scalars(statement).all()
            if not page:
                return
            yield page
            last = page[-1]

    def _look(self) -> None:
        """Raise Abandoned if the claim has ended, and _Overdue if the time is over."""
        if self.handle.ended:
            raise Abandoned
        if now() > self.deadline:
            raise _Overdue

    def _first_failure(self) -> dict[str, Any] | None:
        conditions = SourceItem.source_id == self.source.id, SourceItem.change == FAILED
        with self.context.db.read() as session:
            item = session.scalar(select(SourceItem).where(*conditions).order_by(SourceItem.key).limit(1))
        if item is None or item.error is None:
            return None
        return {"code": item.error["code"], "message": f"{readable(item.key)}: {item.error['message']}"}
