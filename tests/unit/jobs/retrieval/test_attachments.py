"""Rows of files in stores, and which removals from the vector database are pending when they change."""

from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import Expired
from jobs.ledger import ledger
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.retrieval import attachments
from jobs.retrieval.attachments import Attachment, Made
from jobs.retrieval.tables import VectorRemoval, VectorStore, VectorStoreFile
from jobs.webhooks.tables import Delivery, Event
from tests.support import sample_jobs

CUT = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}


def make_store(db: Database, name: str = "vs_1", **facts: Any) -> VectorStore:
    given: dict[str, Any] = {
        "id": name, "project_id": "proj_1", "name": "n", "model": "m", "chunking": CUT, "dimensions": 4,
        "created_at": 1.0, "active_at": 1.0, **facts,
    }  # fmt: skip
    with db.write() as session:
        session.add(VectorStore(**given))
    return VectorStore(**given)


def attached(db: Database, store: VectorStore, *names: str, **facts: Any) -> Job:
    """Create a job that adds these files."""
    payload = {"store_id": store.id}
    with db.write() as session:
        job = sample_jobs.new_job(kind="ingestion", payload=payload, total=len(names), model="m", endpoint=None)
        ledger.submit(session, job, actor="key:test")
        attachments.attach(session, store, job, [Attachment(name, f"{name}.txt", CUT, **facts) for name in names])
    return job


def row(db: Database, name: str, store: str = "vs_1") -> VectorStoreFile:
    with db.read() as session:
        return session.get_one(VectorStoreFile, (store, name))


def removals(db: Database) -> list[tuple[str, str | None]]:
    with db.read() as session:
        rows = session.execute(select(VectorRemoval.what, VectorRemoval.document).order_by(VectorRemoval.id))
        return [(what, document) for what, document in rows]


def made(db: Database, name: str, **facts: Any) -> Made:
    """Write what a worker makes of a file in its present state."""
    file = row(db, name)
    given = {"document": f"{file.version}.3", "entries": 2, "usage_bytes": 10, "recipe": "r", **facts}
    return Made(file.line, name, file.version, **given)


def publish(db: Database, store: VectorStore, *found: Made) -> attachments.Settled:
    with db.write() as session:
        return attachments.publish(session, store, found)


def ended(session: Session, job_id: str, state: JobState, **values: Any) -> None:
    """Apply a job's move into a terminal state to its files; the job has reserved the number of its own event."""
    job = session.get_one(Job, job_id)
    job.state, job.event_seq = state, job.event_seq + 1
    for name, value in values.items():
        setattr(job, name, value)
    attachments.end_files(session, job)


def test_an_attached_file_is_in_progress_and_cannot_be_found(db: Database) -> None:
    job = attached(db, make_store(db), "file-a", "file-b", attributes={"n": 1})

    file = row(db, "file-b")
    assert (file.status, file.document, file.line, file.job_id) == ("in_progress", None, 1, job.id)
    assert (file.filename, file.attributes, file.entries, file.usage_bytes) == ("file-b.txt", {"n": 1}, 0, 0)


def test_published_it_can_be_found(db: Database) -> None:
    store = make_store(db)
    attached(db, store, "file-a")

    settled = publish(db, store, made(db, "file-a"))

    file = row(db, "file-a")
    assert (file.status, file.document, file.entries, file.usage_bytes) == ("completed", f"{file.version}.3", 2, 10)
    assert [one.file_id for one in settled.completed] == ["file-a"]
    assert removals(db) == []


def test_reattached_file_serves_old_version_until_next_publication(db: Database) -> None:
    store = make_store(db)
    attached(db, store, "file-a", attributes={"n": 1})
    publish(db, store, made(db, "file-a"))
    old = row(db, "file-a")

    attached(db, store, "file-a", attributes={"n": 2})
    between = row(db, "file-a")
    publish(db, store, made(db, "file-a"))
    after = row(db, "file-a")

    assert (between.status, between.document, between.entries) == ("in_progress", old.document, 2)
    assert (between.created_at, between.attributes) == (old.created_at, {"n": 2})
    assert after.document not in (None, old.document)
    assert removals(db) == [("document", old.document)]


def test_republication_of_same_version_removes_nothing(db: Database) -> None:
    store = make_store(db)
    attached(db, store, "file-a")
    publish(db, store, made(db, "file-a"))
    document = row(db, "file-a").document
    attached(db, store, "file-a")

    publish(db, store, made(db, "file-a", document=document))

    assert (row(db, "file-a").document, removals(db)) == (document, [])


def test_failed_reattachment_preserves_published_version_and_reports_error(db: Database) -> None:
    store = make_store(db)
    attached(db, store, "file-a")
    publish(db, store, made(db, "file-a"))
    document = row(db, "file-a").document
    attached(db, store, "file-a")

    settled = publish(db, store, made(db, "file-a", error=("invalid_file", "No.")))

    file = row(db, "file-a")
    assert (file.status, file.error_code, file.error_message) == ("failed", "invalid_file", "No.")
    assert (file.document, len(settled.failed)) == (document, 1)


def test_reattachment_clears_previous_error(db: Database) -> None:
    store = make_store(db)
    attached(db, store, "file-a")
    publish(db, store, made(db, "file-a", error=("invalid_file", "No.")))

    attached(db, store, "file-a")

    assert (row(db, "file-a").error_code, row(db, "file-a").error_message) == (None, None)


@pytest.mark.parametrize("how", ["removed", "attached anew", "published already", "failed already"])
def test_obsolete_result_is_not_published_and_is_enqueued_for_removal(db: Database, how: str) -> None:
    store = make_store(db)
    attached(db, store, "file-a")
    late = made(db, "file-a", document="late.9")
    if how == "removed":
        with db.write() as session:
            attachments.remove_everywhere(session, ["file-a"])
    elif how == "attached anew":
        attached(db, store, "file-a")
    else:
        publish(db, store, made(db, "file-a", error=("invalid_file", "No.") if how == "failed already" else None))

    settled = publish(db, store, late)

    assert settled.removed == [late]
    assert ("leftovers", None) in removals(db)
    if how != "removed":
        assert row(db, "file-a").document != "late.9"


def test_only_the_files_in_progress_of_these_lines_are_to_be_made(db: Database) -> None:
    store = make_store(db)
    job = attached(db, store, *(f"file-{n}" for n in range(5)))
    publish(db, store, made(db, "file-2"))

    with db.read() as session:
        lines = attachments.files_of_lines(session, job.id, 1, 3)

    assert {line: file.id for line, file in lines.items()} == {0: "file-1", 2: "file-3"}


def test_a_removed_file_enqueues_the_removal_of_its_vectors(db: Database) -> None:
    store = make_store(db)
    attached(db, store, "file-a", "file-b")
    publish(db, store, made(db, "file-a"))
    document = row(db, "file-a").document

    with db.write() as session:
        for name in ("file-a", "file-b"):
            attachments.remove(session, store, session.get_one(VectorStoreFile, ("vs_1", name)))

    assert removals(db) == [("document", document), ("leftovers", None)]


def test_a_deleted_file_leaves_every_store_but_no_other_file_does(db: Database) -> None:
    for name in ("vs_1", "vs_2"):
        attached(db, make_store(db, name), "file-a", "file-b")

    with db.write() as session:
        attachments.remove_everywhere(session, ["file-a"])

    with db.read() as session:
        left = session.execute(select(VectorStoreFile.store_id, VectorStoreFile.id)).all()
    assert sorted(map(tuple, left)) == [("vs_1", "file-b"), ("vs_2", "file-b")]


def test_leftovers_and_stores_are_enqueued_once_and_documents_each(db: Database) -> None:
    store = make_store(db)
    attached(db, store, "file-a")
    with db.write() as session:
        file = session.get_one(VectorStoreFile, ("vs_1", "file-a"))
        for what in (attachments.LEFTOVERS, attachments.STORE, attachments.DOCUMENT) * 2:
            attachments.enqueue_removal(session, store, what, file if what == attachments.DOCUMENT else None)

    assert [what for what, _ in removals(db)] == ["leftovers", "store", "document", "document"]


def test_removal_enqueued_during_its_execution_remains_due(db: Database) -> None:
    """Its date is another one, so that the receipt of the removal under way does not fit."""
    store = make_store(db)
    with db.write() as session:
        attachments.enqueue_removal(session, store, attachments.LEFTOVERS)
        session.execute(update(VectorRemoval).values(created_at=1.0))

    with db.write() as session:
        attachments.enqueue_removal(session, store, attachments.LEFTOVERS)

    with db.read() as session:
        assert session.scalars(select(VectorRemoval.created_at)).one() > 1.0
        assert attachments.has_due_removals(session)


def test_the_first_vectors_decide_how_long_all_are(db: Database) -> None:
    make_store(db, dimensions=0)

    with db.write() as session:
        found = [
            attachments.record_dimensions(session, name, length)
            for name, length in (("vs_1", 8), ("vs_1", 9), ("no", 8))
        ]

    assert found == [8, 8, 0]


@pytest.mark.parametrize(
    ("state", "status", "code", "words"),
    [
        (JobState.CANCELLED, "cancelled", None, None),
        (JobState.EXPIRED, "failed", "server_error", "The file was not processed within its time."),
        (JobState.FAILED, "failed", "server_error", "Internal error."),
    ],
)
def test_at_its_jobs_end_a_file_in_progress_ends_too(
    db: Database, state: JobState, status: str, code: str | None, words: str | None
) -> None:
    store = make_store(db)
    job = attached(db, store, "file-a", "file-b")
    publish(db, store, made(db, "file-a"))
    other = attached(db, store, "file-c")

    with db.write() as session:
        ended(session, job.id, state=state)

    files = {name: row(db, name) for name in ("file-a", "file-b", "file-c")}
    assert [file.status for file in files.values()] == ["completed", status, "in_progress"]
    assert (files["file-b"].error_code, files["file-b"].error_message) == (code, words)
    assert removals(db) == [("leftovers", None)]
    assert files["file-c"].job_id == other.id


def test_a_job_that_went_well_leaves_nothing_to_look_for(db: Database) -> None:
    store = make_store(db)
    job = attached(db, store, "file-a")
    publish(db, store, made(db, "file-a"))

    with db.write() as session:
        ended(session, job.id, state=JobState.SUCCEEDED)

    assert removals(db) == []


def test_end_of_job_in_deleted_store_reenqueues_store_removal(db: Database) -> None:
    store = make_store(db)
    job = attached(db, store, "file-a")
    with db.write() as session:
        attachments.remove_store(session, session.get_one(VectorStore, "vs_1"))
    with db.write() as session:
        session.execute(VectorRemoval.__table__.delete())  # done

    with db.write() as session:
        ended(session, job.id, state=JobState.FAILED)

    with db.read() as session:
        again = session.scalars(select(VectorRemoval)).one()
    assert (again.what, again.store_id, again.project_id, again.model) == ("store", "vs_1", "proj_1", "m")


@pytest.mark.parametrize(("days", "left"), [(None, None), (3, 3 * 86_400)])
def test_a_store_that_is_used_expires_so_much_later(db: Database, days: int | None, left: int | None) -> None:
    store = make_store(db, expires_days=days, expires_at=now() + 5 if days else None)

    attached(db, store, "file-a")

    with db.read() as session:
        after = session.get_one(VectorStore, "vs_1")
    assert now() - 5 < after.active_at <= now()
    assert after.expires_at == (None if left is None else after.active_at + left)


def test_a_store_that_has_expired_takes_nothing_and_stays_expired(db: Database) -> None:
    store = make_store(db, expires_days=3, expires_at=now() - 1)

    with pytest.raises(Expired):
        attached(db, store, "file-a")
    with db.write() as session:
        assert not attachments.touch(session, "vs_1", now())


def test_files_of_a_rejected_job_say_why(db: Database) -> None:
    store = make_store(db)
    job = attached(db, store, "file-a")

    with db.write() as session:
        ended(
            session, job.id, state=JobState.FAILED, errors=[{"code": "model_not_found", "message": "Nobody serves it."}]
        )

    with db.read() as session:
        assert session.scalars(select(VectorStoreFile.error_message)).all() == ["Nobody serves it."]


@pytest.mark.parametrize(
    ("state", "beside", "told"),
    [
        (JobState.FAILED, False, ["file-a", "file-c"]),
        (JobState.EXPIRED, False, ["file-a", "file-c"]),
        (JobState.CANCELLED, False, []),
        (JobState.FAILED, True, []),
    ],
)
def test_events_of_failed_files_precede_event_of_their_job(
    db: Database, state: JobState, beside: bool, told: list[str]
) -> None:
    store = make_store(db)
    job = attached(db, store, "file-c", "file-a", "file-b")
    publish(db, store, made(db, "file-b"))
    with db.write() as session:
        row = session.get_one(Job, job.id)
        row.payload, row.webhook_url = {**row.payload, "beside": beside}, "https://h/"

    with db.write() as session:
        ended(session, job.id, state=state)

    with db.read() as session:
        events = session.scalars(select(Event).where(Event.seq > 1).order_by(Event.seq)).all()
        assert session.scalars(select(Delivery.job_id)).all() == [job.id] * len(told)
        assert session.get_one(Job, job.id).event_seq == 2 + len(told)
    assert [(one.seq, one.type, one.data["id"]) for one in events] == [
        (seq, "vector_store.file.failed", name) for seq, name in enumerate(told, 2)
    ]


def test_expired_store_with_files_enqueues_single_removal(db: Database) -> None:
    over, empty, alive = (make_store(db, name, expires_days=1) for name in ("vs_1", "vs_2", "vs_3"))
    for store in (over, alive):
        attached(db, store, f"file-{store.id}")
    with db.write() as session:
        session.execute(update(VectorStore).where(VectorStore.id != alive.id).values(expires_at=5.0))

    with db.write() as session:
        counts = [attachments.expire(session, now(), 10) for _ in range(2)]

    with db.read() as session:
        removals = session.execute(select(VectorRemoval.store_id, VectorRemoval.what)).all()
    assert (counts, list(map(tuple, removals))) == ([1, 0], [(over.id, "store")])
    assert empty.id == "vs_2"


def test_a_key_names_its_version() -> None:
    assert attachments.version_of("vsd_abc.12") == "vsd_abc"
