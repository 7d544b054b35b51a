"""Build, sync, switch to and remove a second index, each in a transaction that has locked the store.

build  ─▶ one job for files that are published or in progress; rows of failed ones are copied
sync   ─▶ one job for those that the index lacks
switch ─▶ refused while files are missing, unless allowed; the former index can be switched to again
"""

from typing import Any, Final

from sqlalchemy import JSON, Select, String, and_, cast, func, insert, literal, null, or_, select
from sqlalchemy.orm import Session, aliased

from jobs.clock import now
from jobs.db.engine import UNSEEN, execute_and_count, insert_into
from jobs.errors import Conflict, Expired
from jobs.files.tables import File
from jobs.ids import new_id
from jobs.ledger.tables import Job
from jobs.retrieval import attachments, indexes, ingestions, source_items
from jobs.retrieval.attachments import CANCELLED, FAILED, IN_PROGRESS, is_over
from jobs.retrieval.indexes import index_of
from jobs.retrieval.tables import Source, VectorStore, VectorStoreFile

MAX_INDEXES: Final = 4  # of a store, because each file is added to all of them
_NAMED: Final = 5


def build(
    session: Session,
    store: VectorStore,
    *,
    model: str,
    dimensions: int | None,
    chunking: dict[str, Any] | None,
    actor: str,
    **columns: Any,
) -> VectorStore:
    """Create an index of all files of a store; without `chunking` each is cut as before.

    Raises: Conflict, Expired.
    """
    if len(indexes.all_of(session, store)) >= MAX_INDEXES:
        raise Conflict(f"A vector store has at most {MAX_INDEXES} indexes: delete one first.", code="too_many_indexes")
    index = VectorStore(
        id=new_id("vsi_"),
        project_id=store.project_id,
        parent_id=store.id,
        name="",
        model=model,
        dimensions=dimensions or 0,
        shortened=dimensions is not None,
        chunking=chunking or indexes.current(session, store).chunking,
        created_at=now(),
        active_at=store.active_at,
        expires_at=store.expires_at,
    )
    session.add(index)
    session.flush()
    _copy_failed(session, store, index)
    _fill(session, store, index, chunking, actor=actor, **columns)
    return index


def sync(session: Session, store: VectorStore, index: VectorStore, *, actor: str, **columns: Any) -> Job | None:
    """Submit a job for the files that an index lacks; return None if it lacks none.

    Raises: Expired.
    """
    return _fill(session, store, index, None, actor=actor, **columns)


def alongside(session: Session, job: Job, source_id: str, *, actor: str, **columns: Any) -> None:
    """Attach the files of a job to the store's other indexes too, with their chunking."""
    store, taken = indexes.lock(session, job.payload["store_id"]), index_of(job.payload)
    if store is None or is_over(store):
        return
    source = session.get(Source, source_id)
    for index in indexes.all_of(session, store):
        if index.id != taken:
            chunking = (source.chunking if source else None) or index.chunking
            _fill(session, store, index, chunking, job=job, actor=actor, key_id=job.key_id, **columns)


def switch(session: Session, store: VectorStore, index: VectorStore, *, allow_missing: bool = False) -> None:
    """Let searches read this index from now on; the former one stays.

    Raises: Conflict.
    """
    if index.id == store.current_id:
        return
    lacks = indexes.count_missing(session, store, index)
    if lacks and not allow_missing:
        names = session.scalars(indexes.missing(store, index).order_by(VectorStoreFile.id).limit(_NAMED)).all()
        more = ", …" if lacks > len(names) else ""
        lacking = f"{lacks} of the store's files ({', '.join(names)}{more})"
        raise Conflict(f"The index '{index.id}' lacks {lacking}: sync it first.", code="index_incomplete")
    before = indexes.current(session, store)
    before.replaced_at, index.replaced_at = now(), None
    store.index_id = index.id if index.parent_id else None
    session.flush()
    source_items.remove_old_versions(session, store)


def remove(session: Session, store: VectorStore, index: VectorStore) -> None:
    """Enqueue the removal of an index.

    Raises: Conflict, for the index in use.
    """
    if index.id == store.current_id:
        raise Conflict("This index is in use: switch to another first.", code="index_active")
    if index.parent_id:
        attachments.remove_index(session, index)
    else:  # the store's own row stays
        index.replaced_at = None
        attachments.enqueue_removal(session, index, attachments.STORE)
    session.flush()


def _fill(
    session: Session,
    store: VectorStore,
    index: VectorStore,
    chunking: dict[str, Any] | None,
    *,
    actor: str,
    job: Job | None = None,
    **columns: Any,
) -> Job | None:
    """Submit a job for the files that the index in use, or `job`, has or is adding, and that this index lacks."""
    lacking = _lacking(store, index, job)
    if not _hold(session, lacking):
        return None
    if not attachments.touch(session, store.id, now()):
        raise Expired(f"The vector store '{store.id}' has expired.", param="vector_store_id")
    index.job_id = new_id(ingestions.SINGLE)
    own = index.chunking if index.chunking != indexes.current(session, store).chunking else None
    total = _copy_published(session, lacking, index, chunking, own)
    made = ingestions.begin(session, index, total, actor=actor, beside=True, id=index.job_id, **columns)
    session.flush()
    return made


def _hold(session: Session, rows: Select[*tuple[Any, ...]]) -> int:
    """Lock the files against deletion, and return their number."""
    files = rows.with_only_columns(File.id, maintain_column_froms=True).with_for_update(read=True, of=File)
    return session.scalar(select(func.count()).select_from(files.subquery())) or 0


def _lacking(store: VectorStore, index: VectorStore, job: Job | None) -> Select[str, dict[str, Any] | None]:
    """Select the rows that `index` lacks, with their former chunking in that index.

    The rows are those of the index in use, or with `job` those of the job.
    """
    here, own = VectorStoreFile, aliased(VectorStoreFile)
    there = here.store_id == store.current_id
    if job is not None:
        there = and_(here.store_id == index_of(job.payload), here.job_id == job.id)
    return (
        select(here.id, own.chunking)
        .join(File, and_(File.id == here.id, File.deleted_at.is_(None)))
        .outerjoin(own, and_(own.store_id == index.id, own.id == here.id))
        .where(there, or_(here.document.is_not(None), here.status == IN_PROGRESS))
        .where(or_(own.id.is_(None), and_(own.document.is_(None), own.status != IN_PROGRESS)))
    )


def _copy_published(
    session: Session,
    lacking: Select[str, dict[str, Any] | None],
    index: VectorStore,
    chunking: dict[str, Any] | None,
    own: dict[str, Any] | None,
) -> int:
    """Insert the rows as lines of the index's job by one statement, for they may be many; return their number.

    Without `chunking` each is cut as before in this index, or else by the index's `own` chunking.
    """
    here = VectorStoreFile
    cut = func.coalesce(lacking.selected_columns[1], here.chunking if own is None else literal(own, JSON()))
    line = func.row_number().over(order_by=(here.created_at, here.id)) - 1
    values: dict[str, Any] = {
        "store_id": literal(index.id),
        "id": here.id,
        "project_id": here.project_id,
        "filename": here.filename,
        "status": literal(IN_PROGRESS),
        "created_at": here.created_at,
        "attributes": here.attributes,
        "chunking": cut if chunking is None else literal(chunking, JSON()),
        "error_code": null(),
        "error_message": null(),
        "job_id": literal(index.job_id),
        "line": line,
        "version": literal(new_id("vsd_") + "n").concat(cast(line, String)),
        "entries": literal(0),
        "usage_bytes": literal(0),
    }
    rows = lacking.with_only_columns(*values.values(), maintain_column_froms=True)
    insert = insert_into(session, VectorStoreFile).from_select(list(values), rows)
    unchanged = {"store_id", "id", "project_id", "created_at"}
    again = {name: insert.excluded[name] for name in values if name not in unchanged}
    brought = insert.on_conflict_do_update(index_elements=["store_id", "id"], set_=again)
    return execute_and_count(session, brought, {"preserve_rowcount": True, **UNSEEN})


def _copy_failed(session: Session, store: VectorStore, index: VectorStore) -> None:
    """Copy rows of files that failed or were cancelled before they were published."""
    other = VectorStoreFile
    names = [column.name for column in other.__table__.columns]
    columns = [literal(index.id) if name == "store_id" else getattr(other, name) for name in names]
    over = other.store_id == store.current_id, other.document.is_(None), other.status.in_((FAILED, CANCELLED))
    rows = select(*columns).join(File, and_(File.id == other.id, File.deleted_at.is_(None))).where(*over)
    if _hold(session, rows):
        session.execute(insert(other).from_select(names, rows))
