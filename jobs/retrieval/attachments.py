"""Files in vector stores: attached, published, replaced, removed. SQL alone decides what can be found.

    attach ─▶ in_progress ──published──▶ completed      `document` becomes the key of this version; the removal of
       ▲           ├──refused──────▶ failed             the version before is enqueued in the same transaction
       └── again ──┤
                   └──job ended────▶ cancelled, failed

Each line of an ingestion is one file. Each time a file is attached, its row gets a new `version`. Each attempt to make
the vectors of a version writes them under its own key, `<version>.<epoch of the claim>`, and the row's `document` is
the key that searches read. So the vectors of a worker that died or lost its claim have a key that no row names. They
are leftovers: never found, and removed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, and_, delete, exists, false, insert, literal, or_, select, update
from sqlalchemy.orm import Session, aliased

from jobs.clock import now
from jobs.db.engine import UNSEEN, Database, execute_and_count, insert_into, page_ids
from jobs.errors import Expired
from jobs.ids import new_id
from jobs.ledger import events
from jobs.ledger.states import JobState, ShardState
from jobs.ledger.tables import Job, Shard
from jobs.queues import Queue
from jobs.retrieval.indexes import index_of
from jobs.retrieval.tables import VectorRemoval, VectorStore, VectorStoreFile

IN_PROGRESS: Final = "in_progress"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
EVENTS: Final = dict.fromkeys(("vector_store.file.completed", "vector_store.file.failed"), "file-")

#: What to remove from the vector database: the vectors under one key, a whole store, or its leftovers.
DOCUMENT, STORE, LEFTOVERS = "document", "store", "leftovers"
STOPPED_AT_ONCE: Final = 50  # files, each with its row, its event and its webhook deliveries
AGAIN_SECONDS: Final = 60.0  # after a removal that failed
_USED_SECONDS: Final = 60.0  # between two notes of a use
_EPOCHS: Final = 3  # of a shard that no attempt failed on: claimed to parse, requeued, claimed to index


#: How far a file in progress is.
Stage = Literal["waiting_to_be_parsed", "parsing", "waiting_to_be_embedded", "embedding"]


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file to be added to a store."""

    file_id: str
    filename: str
    chunking: dict[str, Any] | None = None  # None: that of the index
    attributes: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """The result of one line of an ingestion: a complete version, or an error.

    `document` is the key of the version's vectors, `entries` their number. `recipe` is a hash of the file's content and
    of all that decides its vectors: equal recipes have equal vectors.
    """

    line: int
    file_id: str
    version: str
    document: str = ""
    entries: int = 0
    usage_bytes: int = 0
    recipe: str | None = None
    error: tuple[str, str] | None = None  # code and message, as OpenAI's `last_error`


@dataclass(slots=True)
class Settled:
    """The lines of `publish`, by result."""

    completed: list[Made] = field(default_factory=list)
    failed: list[Made] = field(default_factory=list)
    removed: list[Made] = field(
        default_factory=list
    )  # the file was removed from the store meanwhile, or attached again


def attach(session: Session, store: VectorStore, job: Job, files: Sequence[Attachment], first: int = 0) -> None:
    """Write rows for `files`, which `job` makes, line by line.

    A published version of a file stays visible until the new version is published.

    The caller has locked the store's row.

    Raises: Expired.
    """
    at = now()
    if not touch(session, store.root, at):
        raise Expired(f"The vector store '{store.root}' has expired.", param="vector_store_id")
    rows = [
        {
            "store_id": store.id,
            "id": file.file_id,
            "project_id": store.project_id,
            "filename": file.filename,
            "status": IN_PROGRESS,
            "created_at": at,
            "attributes": file.attributes,
            "chunking": file.chunking or store.chunking,
            "error_code": None,
            "error_message": None,
            "job_id": job.id,
            "line": line,
            "version": new_id("vsd_"),
            "entries": 0,
            "usage_bytes": 0,
        }
        for line, file in enumerate(files, first)
    ]
    unchanged = {"store_id", "id", "project_id", "created_at", "entries", "usage_bytes"}
    insert = insert_into(session, VectorStoreFile)
    again = {name: insert.excluded[name] for name in rows[0] if name not in unchanged}
    rows.sort(key=lambda row: str(row["id"]))  # locked in one order, so that concurrent attaches do not deadlock
    session.execute(insert.on_conflict_do_update(index_elements=["store_id", "id"], set_=again), rows)


def touch(session: Session, store_id: str, at: float) -> bool:
    """Note a use of the store, from which its expiry counts.

    Return False if the store has expired or does not exist.
    """
    alive = or_(VectorStore.expires_at.is_(None), VectorStore.expires_at > at)
    used = {"active_at": at, "expires_at": at + 86_400 * VectorStore.expires_days}  # NULL without `expires_days`
    if execute_and_count(session, update(VectorStore).where(VectorStore.id == store_id, alive).values(used)) != 1:
        return False
    root = aliased(VectorStore)
    until = select(root.expires_at).where(root.id == store_id).scalar_subquery()
    theirs = update(VectorStore).where(VectorStore.parent_id == store_id).values(active_at=at, expires_at=until)
    session.execute(theirs, execution_options=UNSEEN)  # its other indexes expire with it
    return True


def is_over(store: VectorStore) -> bool:
    """Return whether a store has expired."""
    return store.expires_at is not None and store.expires_at <= now()


def note_use(db: Database, store: VectorStore) -> None:
    """Note a search as a use, once a minute."""
    at = now()
    if at - store.active_at > _USED_SECONDS:
        with db.write() as session:
            touch(session, store.root, at)


def files_of_lines(session: Session, job_id: str, first: int, count: int) -> dict[int, VectorStoreFile]:
    """Return the files that a job has still to make among `count` lines from `first`, by line number minus `first`."""
    lines = select(VectorStoreFile).where(
        VectorStoreFile.job_id == job_id,
        VectorStoreFile.line >= first,
        VectorStoreFile.line < first + count,
        VectorStoreFile.status == IN_PROGRESS,
    )
    return {row.line - first: row for row in session.scalars(lines)}


def stages(session: Session, rows: Iterable[VectorStoreFile]) -> dict[str, Stage]:
    """Return how far the files in progress are, by file, as the shards of their jobs show it.

    The files of a shard, 32 by default, are parsed one after the other and embedded together.
    """
    files = [row for row in rows if row.status == IN_PROGRESS]
    by_job: dict[str, list[int]] = {}
    for row in files:
        by_job.setdefault(row.job_id, []).append(row.line)
    near = [
        and_(Shard.job_id == job_id, Shard.first_line <= max(lines), Shard.first_line + Shard.lines > min(lines))
        for job_id, lines in by_job.items()
    ]
    shown = select(Shard.job_id, Shard.first_line, Shard.lines, Shard.queue, Shard.state).where(or_(false(), *near))
    shards = session.execute(shown).all()
    return {row.id: _stage(row, shards) for row in files}


def _stage(row: VectorStoreFile, shards: Iterable[Any]) -> Stage:
    for shard in shards:
        if shard.job_id == row.job_id and 0 <= row.line - shard.first_line < shard.lines:
            runs = shard.state == ShardState.RUNNING
            if shard.queue == Queue.INGEST:
                return "parsing" if runs else "waiting_to_be_parsed"
            return "embedding" if runs else "waiting_to_be_embedded"
    return "waiting_to_be_parsed"  # its job is not planned yet


def record_dimensions(session: Session, store_id: str, dimensions: int) -> int:
    """Record the length of a store's vectors unless it is known.

    Return that length, or 0 if the store does not exist.
    """
    unknown = VectorStore.id == store_id, VectorStore.dimensions == 0
    session.execute(update(VectorStore).where(*unknown).values(dimensions=dimensions), execution_options=UNSEEN)
    return session.scalar(select(VectorStore.dimensions).where(VectorStore.id == store_id)) or 0


def publish(session: Session, store: VectorStore, made: Sequence[Made]) -> Settled:
    """Publish versions and note failures, except for files that were removed or attached again meanwhile."""
    query = select(VectorStoreFile).where(
        VectorStoreFile.store_id == store.id, VectorStoreFile.id.in_([line.file_id for line in made])
    )
    rows = {row.id: row for row in session.scalars(query.order_by(VectorStoreFile.id).with_for_update())}
    settled = Settled()
    for line in made:
        row = rows.get(line.file_id)
        if row is None or row.version != line.version or row.status != IN_PROGRESS:
            settled.removed.append(line)
        elif line.error is not None:
            row.status, (row.error_code, row.error_message) = FAILED, line.error
            settled.failed.append(line)
        else:
            _publish(session, store, row, line)
            settled.completed.append(line)
    if settled.removed:
        enqueue_removal(session, store, LEFTOVERS)
    return settled


def _publish(session: Session, store: VectorStore, row: VectorStoreFile, made: Made) -> None:
    if row.document and row.document != made.document:
        enqueue_removal(session, store, DOCUMENT, row)
    row.status, row.document, row.entries = COMPLETED, made.document, made.entries
    row.usage_bytes, row.recipe = made.usage_bytes, made.recipe


def tell(session: Session, job: Job, kind: str, file_ids: Sequence[str], *, seq: int) -> None:
    """Record an event for each file, numbered from `seq`. The caller has locked the job's row.

    A job that fills a further index of the store (`beside`) records none: no client asked for it.
    """
    if job.payload.get("beside"):
        return
    of_job: dict[str, Any] = {"subject_id": job.id, "project_id": job.project_id, "type": kind}
    store = {"vector_store_id": job.payload["store_id"]}
    recorded = [
        events.record(session, **of_job, seq=n, data={"id": file_id, **store})
        for n, file_id in enumerate(file_ids, seq)
    ]
    job.event_seq += len(recorded)
    session.flush()
    events.fan_out_all(session, recorded, job)


def stop(
    session: Session,
    job: Job,
    end: JobState,
    errors: Sequence[Mapping[str, Any]] | None,
    *,
    seq: int,
    limit: int | None = None,
) -> int:
    """End at most `limit` files that `job` has not made, and return their number.

    `end` is the terminal state of the job: `cancelled` cancels the files, any other one fails them with an event each.
    """
    left = select(VectorStoreFile).where(VectorStoreFile.job_id == job.id, VectorStoreFile.status == IN_PROGRESS)
    rows = session.scalars(left.order_by(VectorStoreFile.id).limit(limit).with_for_update()).all()
    for row in rows:
        row.status = CANCELLED
        if end != JobState.CANCELLED:
            row.status, row.error_code, row.error_message = FAILED, "server_error", _reason(end, errors)
    if end != JobState.CANCELLED:
        tell(session, job, "vector_store.file.failed", [row.id for row in rows], seq=seq)
    return len(rows)


def end_files(session: Session, job: Job) -> None:
    """End the files that an ingestion has not made before its own end.

    Where there are many files, `stop` has ended most of them before, in transactions of their own. The event of the job
    comes after those of its files.
    """
    stopped = stop(session, job, JobState(job.state), job.errors, seq=job.event_seq)
    again = exists().where(Shard.job_id == job.id, Shard.epoch > _EPOCHS)
    removed = ~exists().where(VectorStore.id == index_of(job.payload))
    whole = job.state == JobState.SUCCEEDED and not stopped and not job.failed
    if not whole or session.scalar(select(or_(again, removed))):
        enqueue_cleanup(session, job)


def _reason(end: JobState, errors: Sequence[Mapping[str, Any]] | None) -> str:
    if end == JobState.EXPIRED:
        return "The file was not processed within its time."
    return str((errors or [{}])[0].get("message") or "Internal error.")


def enqueue_cleanup(session: Session, job: Job, dimensions: int = 0) -> None:
    """Enqueue the removal of vectors that an attempt may have left, also of a store that does not exist any more."""
    store = session.get(VectorStore, index_of(job.payload))
    if store is not None:
        return enqueue_removal(session, store, LEFTOVERS)
    removed = {"id": index_of(job.payload), "project_id": job.project_id, "model": job.model or ""}
    return enqueue_removal(session, VectorStore(**removed, dimensions=dimensions), STORE)


def remove_unknown_store(session: Session, store_id: str) -> None:
    """Enqueue the removal of a store that the vector database has and SQL does not know."""
    enqueue_removal(session, VectorStore(id=store_id, project_id="", model="", dimensions=0), STORE)


def remove(session: Session, store: VectorStore, row: VectorStoreFile) -> None:
    """Remove a file, whose row is locked, from a store.

    The file is hidden at once; the removal of its vectors is enqueued.
    """
    session.delete(row)
    session.flush()
    if row.document:
        enqueue_removal(session, store, DOCUMENT, row)
    if row.status == IN_PROGRESS or not row.document:
        enqueue_removal(session, store, LEFTOVERS)


def remove_everywhere(session: Session, file_ids: Iterable[str]) -> None:
    """Remove deleted files from all stores."""
    halfway: set[str] = set()
    for page in page_ids(file_ids):
        halfway |= _remove_page(session, page)
    for store in session.scalars(select(VectorStore).where(VectorStore.id.in_(halfway)).order_by(VectorStore.id)):
        enqueue_removal(session, store, LEFTOVERS)


def _remove_page(session: Session, file_ids: Sequence[str]) -> set[str]:
    """Remove the rows of some files by bulk statements.

    Return the stores for which leftovers are possible: those of rows that were in progress or never published.
    """
    row = VectorStoreFile
    here = and_(row.store_id == VectorStore.id, row.id.in_(file_ids))
    locked = select(row.store_id, row.status, row.document).join(VectorStore, here).order_by(row.store_id, row.id)
    rows = session.execute(locked.with_for_update(of=row)).all()
    at = literal(now())
    values: dict[str, Any] = {
        "store_id": row.store_id,
        "project_id": VectorStore.project_id,
        "model": VectorStore.model,
        "dimensions": VectorStore.dimensions,
        "what": literal(DOCUMENT),
        "document": row.document,
        "file_id": row.id,
        "created_at": at,
        "due_at": at,
    }
    removals = select(*values.values()).join(VectorStore, here).where(row.document.is_not(None))
    session.execute(insert(VectorRemoval).from_select(list(values), removals.order_by(row.store_id, row.id)))
    of_stores = row.store_id.in_(
        sorted({store_id for store_id, _, _ in rows})
    )  # leave rows of stores that are being deleted
    session.execute(delete(row).where(row.id.in_(file_ids), of_stores))
    return {store_id for store_id, status, document in rows if status == IN_PROGRESS or not document}


def remove_store(session: Session, store: VectorStore) -> None:
    """Hide a store and all its indexes now. The rows of its files are removed with its vectors."""
    remove_index(session, store)
    for other in session.scalars(select(VectorStore).where(VectorStore.parent_id == store.id)).all():
        remove_index(session, other)  # no index can be added meanwhile: that locks the store's row


def remove_index(session: Session, index: VectorStore) -> None:
    """Delete the row of an index, and enqueue the removal of its vectors."""
    enqueue_removal(session, index, STORE)
    session.execute(delete(VectorStore).where(VectorStore.id == index.id))


def enqueue_removal(session: Session, store: VectorStore, what: str, row: VectorStoreFile | None = None) -> None:
    """Enqueue a removal from the vector database, in the caller's transaction.

    A store has at most one pending removal of the whole store, and one of leftovers: a repeated call renews the date of
    the pending one. If a purge is making that removal now, it finds another date at its end, writes no receipt, and the
    removal is made again.
    """
    if what != DOCUMENT:
        waiting = VectorRemoval.store_id == store.id, VectorRemoval.what == what
        renewed = update(VectorRemoval).where(*waiting).values(created_at=now())
        if execute_and_count(session, renewed, UNSEEN):
            return
    session.add(
        VectorRemoval(
            store_id=store.id,
            project_id=store.project_id,
            model=store.model,
            dimensions=store.dimensions,
            what=what,
            document=row.document if row else None,
            file_id=row.id if row else None,
            created_at=now(),
            due_at=now(),
        )
    )


def has_due_removals(session: Session) -> bool:
    """Return whether a removal from the vector database is due."""
    return session.scalar(select(VectorRemoval.id).where(due()).limit(1)) is not None


def due() -> ColumnElement[bool]:
    """Return the condition of due removals. One that is due too far ahead was written before a clock was set back."""
    at = now()
    return or_(VectorRemoval.due_at <= at, VectorRemoval.due_at > at + AGAIN_SECONDS)


def expire(session: Session, at: float, limit: int) -> int:
    """Enqueue the removal of what expired stores hold; return their number.

    Their rows stay, with the status `expired`.
    """
    inside = exists().where(VectorStoreFile.store_id == VectorStore.id)
    removals = exists().where(VectorRemoval.store_id == VectorStore.id, VectorRemoval.what == STORE)
    over = select(VectorStore).where(VectorStore.expires_at <= at, inside, ~removals).limit(limit)
    stores = session.scalars(over).all()
    for store in stores:
        enqueue_removal(session, store, STORE)
    return len(stores)


def version_of(document: str) -> str:
    """Return the version in a key of vectors, `<version>.<epoch>`."""
    return document.rpartition(".")[0]
