"""What a sync writes: one item a transaction, under the job's claim, and harmless when it is run twice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import Expired
from jobs.files.tables import File
from jobs.ledger import audit, ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import JobState
from jobs.retrieval import attachments, indexes, source_items, sources
from jobs.retrieval.attachments import Attachment
from jobs.retrieval.source_items import ADDED, CHANGED, FAILED, REMOVED, UNCHANGED, digest
from jobs.retrieval.tables import Source, SourceItem, VectorStore, VectorStoreFile
from workers.retrieval.sources.base import Entry, Fetched, ItemFailed, SourceAway
from workers.runtime.context import Context
from workers.runtime.failed_attempts import stop_files

T = TypeVar("T")
_PURPOSE: Final = "assistants"
Facts = dict[str, Any]
INDEX_REMOVED: Final[Facts] = {
    "code": "index_removed",
    "message": "The index that the sync had begun to fill was removed meanwhile: sync again.",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """What was fetched, durable under the id of a file that has no row yet."""

    file_id: str
    size: int
    sha256: str
    told: Fetched

    @property
    def path(self) -> str:
        return path_of(self.file_id)


class Deleted(Exception):
    """A client has deleted the file since it was looked up."""


class Book:
    """The rows of one sync. `line` is the job's next; `written` counts the items that something was said about."""

    def __init__(self, context: Context, claim: JobClaim, source: Source, index: VectorStore, line: int) -> None:
        self.context = context
        self.claim = claim
        self.source = source
        self.index = index
        self.line = line
        self.written = 0
        self.actor = f"source:{source.id}"

    def attach(self, entry: Entry, file_id: str, fingerprint: Facts | None, stored: Stored | None) -> None:
        """A file becomes a line of the job; with `stored` it is new, and its item's newest version.

        Raises Deleted, Expired, SourceAway.
        """

        def attach(session: Session, item: SourceItem) -> None:
            if stored is not None:
                self._insert(session, stored)
                item.previous_id = self._outlived(session, item)
                item.file_id, item.sha256 = file_id, stored.sha256
            alive = File.id == file_id, File.deleted_at.is_(None)
            filename = session.scalar(select(File.filename).where(*alive))
            if filename is None:
                raise Deleted
            wanted = Attachment(file_id, filename, self.source.chunking, self.source.attributes)
            before = session.get(VectorStoreFile, (self.index.id, file_id))
            known = item.previous_id or (before and before.document)
            attachments.attach(session, self.index, self.claim.job, [wanted], self.line)
            self._stamp(item, CHANGED if known else ADDED, fingerprint)

        self._once(entry, attach, lock=True)
        self.line += 1

    def settle(self, entry: Entry, fingerprint: Facts | None) -> None:
        """Nothing is to be done: said for the next sync, and for who goes on with this one."""
        self._once(entry, lambda _, item: self._stamp(item, UNCHANGED, fingerprint))

    def fail(self, entry: Entry, failure: ItemFailed) -> None:
        """What the store has of it stays."""

        def fail(_: Session, item: SourceItem) -> None:
            error = {"code": failure.code, "message": failure.message}
            item.job_id, item.change, item.error = self.claim.job.id, FAILED, error

        self._once(entry, fail)

    def gone(self, entry: Entry) -> None:
        """Its versions go. That it once was there is remembered: it is no failure that it is not.

        Raises Expired, SourceAway.
        """

        def gone(session: Session, item: SourceItem) -> None:
            self._removed(session, sources.strip(session, [item], actor=self.actor))
            self._stamp(item, REMOVED, None)

        self._once(entry, gone, lock=True)

    def remove(self, digests: Sequence[str]) -> None:
        """What is listed no more."""

        def remove(session: Session) -> None:
            indexes.lock(session, self.source.store_id)  # before items, as whoever publishes
            mine = SourceItem.source_id == self.source.id, SourceItem.digest.in_(digests)
            items = session.scalars(select(SourceItem).where(*mine).order_by(SourceItem.digest).with_for_update()).all()
            self._removed(session, sources.strip(session, items, actor=self.actor))
            session.execute(delete(SourceItem).where(*mine))

        self.write(remove)

    def note(self, **values: Any) -> None:
        """On the source's own row."""
        mine = update(Source).where(Source.id == self.source.id)
        self.write(lambda session: session.execute(mine.values(values)))

    def reject(self, error: Facts) -> None:
        """The job fails, with nothing done."""

        told = [{**error, "line": None, "param": None}]

        def reject(session: Session) -> None:
            session.execute(update(Source).where(Source.id == self.source.id).values(error=error))
            ledger.reject(session, self.claim, told)

        stop_files(self.context, self.claim, JobState.FAILED, told)
        self.write(reject)

    def write(self, work: Callable[[Session], T]) -> T:
        """A transaction under the claim, which ends with the source. Raises Fenced."""

        def held(session: Session) -> T:
            ledger.hold(session, self.claim)
            return work(session)

        done = self.context.db.retrying(held, self.context.stop)
        self.context.db.breathe(self.context.stop)
        return done

    def _once(self, entry: Entry, work: Callable[[Session, SourceItem], None], *, lock: bool = False) -> None:
        """On the item as it is now, or a new one; nothing where this job has been at it. `lock`: on the store too."""

        def once(session: Session) -> None:
            if lock:  # before items, as a switch does
                self._lock(session)
            key = (self.source.id, digest(entry.key))
            item = session.get(SourceItem, key, with_for_update=True)
            if item is None:
                item = SourceItem(source_id=key[0], digest=key[1], key=entry.key, job_id="", change="")
                session.add(item)
            if item.job_id != self.claim.job.id:  # or the answer to an earlier commit was lost
                work(session, item)

        self.write(once)
        self.written += 1

    def _lock(self, session: Session) -> None:
        """The store, whose index is still there. Raises SourceAway, Expired."""
        if indexes.lock(session, self.source.store_id) is None:
            raise Expired(f"The vector store '{self.source.store_id}' is gone.", param="vector_store_id")
        if indexes.alive(session, self.index.id) is None:
            raise SourceAway(**INDEX_REMOVED)

    def _insert(self, session: Session, stored: Stored) -> None:
        facts = {"bytes": stored.size, "sha256": stored.sha256}
        row = File(
            id=stored.file_id,
            project_id=self.source.project_id,
            purpose=_PURPOSE,
            filename=stored.told.filename,
            path=stored.path,
            created_at=now(),
            **facts,
        )
        session.add(row)
        session.flush()
        audit.record(
            session,
            actor=self.actor,
            action="file.create",
            target=stored.file_id,
            project_id=self.source.project_id,
            details={**facts, "source": self.source.id},
        )

    def _outlived(self, session: Session, item: SourceItem) -> str | None:
        """The version that can be found until the new one is whole; one that never could be goes at once."""
        ids = [file_id for file_id in (item.file_id, item.previous_id) if file_id]
        in_use = session.get_one(VectorStore, self.source.store_id).current_id  # which may not be the sync's own
        theirs = VectorStoreFile.store_id == in_use, VectorStoreFile.id.in_(ids)
        found = set(session.scalars(select(VectorStoreFile.id).where(*theirs, VectorStoreFile.document.is_not(None))))
        kept = next((file_id for file_id in ids if file_id in found), None)
        others = [file_id for file_id in ids if file_id != kept]
        if others:
            source_items.drop(session, others, actor=self.actor)
        return kept

    def _removed(self, session: Session, count: int) -> None:
        counted = update(Source).where(Source.id == self.source.id).values(removed=Source.removed + count)
        session.execute(counted)

    def _stamp(self, item: SourceItem, change: str, fingerprint: Facts | None) -> None:
        item.job_id, item.change, item.fingerprint, item.error = self.claim.job.id, change, fingerprint, None


def path_of(file_id: str) -> str:
    """As that of an uploaded file."""
    return f"files/{file_id}"
