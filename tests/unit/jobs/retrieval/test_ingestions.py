"""Files come into view with the segment that counts them: all of it once, or nothing."""

import pytest
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.errors import ClaimLost
from jobs.ids import new_id
from jobs.ledger import ledger, shards
from jobs.ledger.shards import ShardClaim, Tally
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.queues import Queue, Task
from jobs.retrieval import attachments, ingestions
from jobs.retrieval.attachments import Made
from jobs.retrieval.tables import VectorStore
from jobs.webhooks.tables import Delivery, WebhookEndpoint
from tests.support import sample_jobs
from tests.unit.jobs.retrieval.test_attachments import attached, made, make_store, removals, row


def claimed(db: Database, *names: str) -> tuple[VectorStore, ShardClaim]:
    """Create a store, and claim the one shard of a job that adds these files."""
    store = make_store(db)
    job = attached(db, store, *names)
    claim = sample_jobs.claim_job(db, job.id, Task.PLAN)
    with db.write() as session:
        shards.cut(session, claim, Queue.EMBED, sample_jobs.cuts(job.id, [len(names)]))
        ledger.begin_running(session, claim, total=len(names), model="m", queue=Queue.EMBED)
    return store, sample_jobs.claim_shard(db, job.id)


def commit(db: Database, claim: ShardClaim, *found: Made, seq: int = 0, last: bool = False) -> None:
    with db.write() as session:
        ingestions.commit(session, claim, seq, found, Tally(input_tokens=7), 4, last=last)


def listen(db: Database) -> None:
    with db.write() as session:
        endpoint = WebhookEndpoint(
            id=new_id("we_"), project_id="proj_1", name="n", url="https://h/", event_types=list(attachments.EVENTS),
            secret="s", created_at=1.0,
        )  # fmt: skip
        session.add(endpoint)


def test_lines_tokens_and_outcomes_are_counted(db: Database) -> None:
    _, claim = claimed(db, "file-a", "file-b", "file-c")
    with db.write() as session:
        attachments.remove_everywhere(session, ["file-c"])

    commit(db, claim, made(db, "file-a"), made(db, "file-b", error=("invalid_file", "No.")), Made(2, "", ""))

    shard = sample_jobs.shard(db, claim.job.id)
    assert (shard.done, shard.failed, shard.input_tokens) == (3, 2, 7)
    (segment,) = sample_jobs.segments(db, claim.job.id)
    assert segment.outcomes == {"error:invalid_file": 1, "error:removed": 1}
    assert (segment.covered, segment.good, segment.path) == (b"\x07", b"\x01", "")


def test_run_twice_it_counts_and_tells_once(db: Database) -> None:
    listen(db)
    _, claim = claimed(db, "file-a", "file-b")
    found = [made(db, "file-a"), made(db, "file-b", error=("invalid_file", "No."))]

    for _ in range(2):
        commit(db, claim, *found, last=True)

    shard = sample_jobs.shard(db, claim.job.id)
    assert (shard.state, shard.done, shard.failed, shard.input_tokens) == ("done", 2, 1, 7)
    told = [kind for _, kind in sample_jobs.told(db, claim.job.id)]
    assert (told.count("vector_store.file.completed"), told.count("vector_store.file.failed")) == (1, 1)
    with db.read() as session:
        assert len(session.scalars(select(Delivery)).all()) == 2
        assert session.get_one(Job, claim.job.id).state == JobState.FINISHING


def test_stopped_job_fails_its_files_in_pages_with_single_event_each(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "STOPPED_AT_ONCE", 2)
    listen(db)
    names = [f"file-{n}" for n in range(5)]
    claim = sample_jobs.claim_job(db, attached(db, make_store(db), *names).id, Task.PLAN)

    def stop() -> bool:
        with db.write() as session:
            return ledger.stop(session, claim, JobState.FAILED, [{"message": "Nobody serves it."}])

    found = []
    for more in (True, True, False, False):
        assert stop() is more
        found.append([row(db, name).status for name in names].count("failed"))

    assert found == [2, 4, 5, 5]
    assert {row(db, name).error_message for name in names} == {"Nobody serves it."}
    told = sample_jobs.told(db, claim.job.id)
    assert told == [(1, "job.created"), *((seq, "vector_store.file.failed") for seq in range(2, 7))]
    with db.read() as session:
        assert len(session.scalars(select(Delivery)).all()) == 5


def test_a_claim_that_was_lost_stops_no_file(db: Database) -> None:
    claim = sample_jobs.claim_job(db, attached(db, make_store(db), "file-a").id, Task.PLAN)
    with db.write() as session:
        ledger.revoke_lease(session, claim.job.id, claim.epoch, 0)

    with pytest.raises(ClaimLost), db.write() as session:
        ledger.stop(session, claim, JobState.FAILED, [])

    assert row(db, "file-a").status == "in_progress"
    assert [kind for _, kind in sample_jobs.told(db, claim.job.id)] == ["job.created"]


def test_events_are_numbered_without_a_gap(db: Database) -> None:
    _, claim = claimed(db, *(f"file-{n}" for n in range(5)))

    commit(db, claim, *(made(db, f"file-{n}") for n in range(3)))
    commit(db, claim, *(made(db, f"file-{n}") for n in range(3, 5)), seq=1, last=True)

    told = sample_jobs.told(db, claim.job.id)
    assert [seq for seq, _ in told] == list(range(1, len(told) + 1))
    assert [kind for _, kind in told].count("vector_store.file.completed") == 5


def test_file_removed_during_ingestion_emits_no_event(db: Database) -> None:
    _, claim = claimed(db, "file-a")
    late = made(db, "file-a")
    with db.write() as session:
        attachments.remove_everywhere(session, ["file-a"])

    commit(db, claim, late, last=True)

    assert not [kind for _, kind in sample_jobs.told(db, claim.job.id) if kind.startswith("vector_store.file.")]
    assert removals(db) == [("leftovers", None)]


@pytest.mark.parametrize("last", [False, True])
def test_a_lost_claim_shows_nothing_and_tells_nothing(db: Database, last: bool) -> None:
    _, zombie = claimed(db, "file-a")
    with db.write() as session:
        shards.revoke_lease(session, zombie.job.id, 0, zombie.epoch, 0)
    before = sample_jobs.told(db, zombie.job.id)

    with pytest.raises(ClaimLost):
        commit(db, zombie, made(db, "file-a"), last=last)

    assert (row(db, "file-a").status, row(db, "file-a").document) == ("in_progress", None)
    assert sample_jobs.told(db, zombie.job.id) == before
    assert list(sample_jobs.segments(db, zombie.job.id)) == []


def test_a_job_that_is_not_there_is_fenced(db: Database) -> None:
    _, claim = claimed(db, "file-a")
    with db.write() as session:
        session.delete(session.get_one(Job, claim.job.id))

    with pytest.raises(ClaimLost):
        commit(db, claim, Made(0, "", ""))


def test_file_of_deleted_store_counts_as_failed_and_enqueues_removal(db: Database) -> None:
    _, claim = claimed(db, "file-a")
    found = made(db, "file-a")
    with db.write() as session:
        attachments.remove_store(session, session.get_one(VectorStore, "vs_1"))

    commit(db, claim, found, last=True)

    shard = sample_jobs.shard(db, claim.job.id)
    assert (shard.state, shard.done, shard.failed) == ("done", 1, 1)
    assert removals(db) == [("store", None)]


def test_nothing_more_to_make_ends_the_shard_without_a_segment(db: Database) -> None:
    _, claim = claimed(db, "file-a")
    commit(db, claim, made(db, "file-a"))

    commit(db, claim, seq=1, last=True)

    assert sample_jobs.shard(db, claim.job.id).state == "done"
    assert len(sample_jobs.segments(db, claim.job.id)) == 1


def test_deliveries_are_enqueued_for_subscribers(db: Database) -> None:
    listen(db)
    _, claim = claimed(db, "file-a", "file-b")

    commit(db, claim, made(db, "file-a"), made(db, "file-b", error=("invalid_file", "No.")))

    with db.read() as session:
        assert len(session.scalars(select(Delivery).where(Delivery.state == "pending")).all()) == 2
