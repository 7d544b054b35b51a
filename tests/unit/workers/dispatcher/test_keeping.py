"""What the dispatcher keeps in order: retention, seals, bytes that nothing points to."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from jobs.batches import batches
from jobs.clock import now
from jobs.db.engine import WRITE_ROWS
from jobs.files.tables import File, Upload, UploadPart
from jobs.ledger import anchors, audit, events, feed, kinds, ledger, shards
from jobs.ledger.kinds import Kind, Payload
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Outbox, Segment, Shard
from jobs.platform import processes
from jobs.security.tables import Idempotency
from jobs.timings import Timings
from jobs.webhooks.deliveries import HELD
from jobs.webhooks.tables import Delivery, WebhookEndpoint
from tests.support import ledgers
from tests.support.house import House, new_file, project_of
from workers.dispatcher import maintenance, retention
from workers.dispatcher.loop import Dispatcher
from workers.dispatcher.maintenance import Anchoring
from workers.dispatcher.retention import Retention


class Diary:
    """Of whoever keeps house: its transactions, and when it lets others write."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.house, self.monkeypatch, self.done = house, monkeypatch, list[str]()

    def keep(self, after: float) -> None:
        self.house.clock.at += after
        self.house.beat("w")
        with self.monkeypatch.context() as patch:
            for name in ("write", "breathe"):
                patch.setattr(self.house.db, name, partial(self._note, name, getattr(self.house.db, name)))
            self.house.dispatcher._house.keep()

    def _note(self, name: str, do: Callable[[], Any]) -> Any:
        self.done.append(name)
        return do()


def test_whoever_keeps_house_lets_others_write_after_each_transaction(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary, project = Diary(house, monkeypatch), project_of(house.db, "one")
    host, pid, started = processes.me()
    house.worker()
    for n in range(3):
        house.worker(f"dead{n}", host=host, pid=pid, started=started + 1)
    diary.keep(0)  # buries
    for n in range(6):
        job = ledgers.running(house.db, project_id=project)
        ledgers.claim_shard(house.db, job.id, worker="w")
        if n % 2:
            with house.db.write() as session:
                ledger.cancel(session, job.id, actor="key:test")
    diary.keep(1)
    diary.keep(3.5)  # fences
    for _ in range(3):
        ledgers.planning(house.db, project_id=project)
        ledgers.finishing(house.db, project_id=project)
        ledgers.running(house.db, project_id=project, model="gone")
    with house.db.write() as session:
        session.query(Outbox).delete()
    diary.keep(1)
    for _ in range(4):
        diary.keep(8)  # takes back, settles, says what is waited for

    assert diary.done == ["write", "breathe"] * (len(diary.done) // 2)
    assert diary.done.count("write") > 3 * 6


def test_retention_takes_the_bytes_of_a_deleted_file_when_no_live_job_reads_it(house: House) -> None:
    live = ledgers.running(house.db, [1], input_file_id="file-read")
    with house.db.write() as session:
        for name, life in (("file-read", {"deleted_at": 1.0}), ("file-late", {"expires_at": 1.0}), ("file-kept", {})):
            house.storage.put(f"files/{name}", b"x")
            session.add(new_file(name, **life))
    keeping = Retention(house.config, house.db, house.storage)

    keeping.run()
    kept = house.storage.list("files")
    with house.db.write() as session:
        ledger.cancel(session, live.id, actor="key:test")
    ledgers.close(house.db, live.id)
    keeping.run()

    assert kept == ["files/file-kept", "files/file-read"]
    assert house.storage.list("files") == ["files/file-kept"]


@pytest.mark.parametrize("field", [Job.error_file_id, Job.payload["judged_file"].as_string()])
def test_a_file_is_held_by_each_live_job_that_reads_it_whatever_names_it(
    house: House, monkeypatch: pytest.MonkeyPatch, field: Any
) -> None:
    monkeypatch.setitem(kinds.TABLE, "judging", Kind("judging", "judge_", Payload, {}, files=(field,)))
    facts = {"error_file_id": "file-read", "payload": {"judged_file": "file-read"}}
    live = ledgers.running(house.db, [1], kind="judging", **facts)
    house.storage.put("files/file-read", b"x")
    with house.db.write() as session:
        session.add(new_file("file-read", deleted_at=1.0))
    keeping = Retention(house.config, house.db, house.storage)

    keeping.run()
    kept = house.storage.list("files")
    with house.db.write() as session:
        ledger.cancel(session, live.id, actor="key:test")
    ledgers.close(house.db, live.id)
    keeping.run()

    assert (kept, house.storage.list("files")) == (["files/file-read"], [])


def test_retention_ends_uploads_whose_hour_is_over_and_forgets_old_keys(house: House) -> None:
    house.storage.put("uploads/u/p", b"x")
    facts = {"filename": "f", "purpose": "batch", "mime_type": "m", "bytes": 1, "created_at": 1.0}
    with house.db.write() as session:
        session.add(Upload(id="u", project_id="p", expires_at=now() - 1, **facts))
        session.add(UploadPart(id="p", upload_id="u", bytes=1, path="uploads/u/p", created_at=1.0))
        session.add(Idempotency(project_id="p", route="r", key="k", beat_at=1.0, created_at=1.0))

    Retention(house.config, house.db, house.storage).run()

    with house.db.read() as session:
        assert session.get_one(Upload, "u").status == "expired"
        assert session.get(Idempotency, ("p", "r", "k")) is None
    assert house.storage.list("uploads") == []


def test_retention_forgets_uploads_that_ended_long_ago_once_their_parts_are_gone(house: House) -> None:
    facts = {"project_id": "p", "filename": "f", "purpose": "batch", "mime_type": "m", "bytes": 1, "created_at": 1.0}
    long_ago = now() - house.config.retention_seconds
    ends = {"old": long_ago - 1, "parts": long_ago - 1, "new": long_ago + 60}
    house.storage.put("uploads/parts/p", b"x")
    with house.db.write() as session:
        session.add_all(Upload(id=name, status="completed", expires_at=at, **facts) for name, at in ends.items())
        session.add(Upload(id="waits", status="pending", expires_at=now() + 60, **facts))
        session.add(UploadPart(id="p", upload_id="parts", bytes=1, path="uploads/parts/p", created_at=1.0))

    left = []
    for _ in range(2):
        Retention(house.config, house.db, house.storage).run()
        with house.db.read() as session:
            left.append(set(session.scalars(select(Upload.id))))

    assert left[-1] == {"new", "waits"}
    assert house.storage.list("uploads") == []


def test_retention_empties_jobs_that_ended_long_ago_and_keeps_their_row(house: House) -> None:
    """Not one that came as long ago and has just ended."""
    old, late = (ledgers.finishing(house.db, [2, 2]) for _ in range(2))
    for job in (old, late):
        ledgers.close(house.db, job.id)
        house.storage.put(f"jobs/{job.id}/000000-1-0.jsonl", b"x")
    with house.db.write() as session:
        session.execute(update(Job).where(Job.id == old.id).values(completed_at=1.0))

    Retention(house.config, house.db, house.storage).run()

    with house.db.read() as session:
        assert set(session.scalars(select(Shard.job_id))) == {late.id}
        assert set(session.scalars(select(Segment.job_id))) == {late.id}
    assert house.storage.list("jobs") == [f"jobs/{late.id}/000000-1-0.jsonl"]
    assert ledgers.state(house.db, old.id) == JobState.SUCCEEDED


def test_what_is_still_held_for_an_endpoint_that_is_enabled_goes_out(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pages of two each time."""
    for name in ("WRITE_ROWS", "_RELEASED_AT_ONCE"):
        monkeypatch.setattr(maintenance, name, 2)
    facts = {"name": "n", "url": "u", "event_types": [], "secret": "s", "created_at": 1.0, "project_id": "p"}
    with house.db.write() as session:
        session.add(WebhookEndpoint(id="we_on", **facts))
        session.add(WebhookEndpoint(id="we_off", disabled_at=1.0, **facts))
        for n, endpoint in enumerate(["we_on"] * 5 + ["we_off"]):
            owed = {"endpoint_id": endpoint, "due_at": HELD, "project_id": "p", "created_at": 1.0}
            session.add(Delivery(id=f"wh_{n}", event_id="evt", **owed))

    held = []
    for _ in range(3):
        house.tick(6)
        with house.db.read() as session:
            held.append(sorted(session.scalars(select(Delivery.endpoint_id).where(Delivery.due_at >= HELD))))

    assert held == [["we_off", "we_on"], ["we_off"], ["we_off"]]


def test_who_looks_for_lost_doorbells_keeps_nobody_from_writing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a long search: only what it has found is mended in a transaction."""
    mended: list[int] = []
    unowed = shards.unowed
    monkeypatch.setattr(shards, "unowed", lambda *given: mended.append(unowed(*given)))
    job = ledgers.running(house.db, [1])

    house.tick(6)
    at_first = list(mended)
    with house.db.write() as session:
        session.execute(delete(Outbox).where(Outbox.job_id == job.id))
    house.tick(6)

    assert (at_first, mended) == ([], [1])


def test_retention_goes_on_each_second_with_what_was_too_much(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_JOBS_AT_ONCE", 1)
    timings = replace(Timings(), retention_pass=0.0, retention_more=0.0)
    house.dispatcher = Dispatcher(house.config, house.db, house.storage, house.bells, house.clock, timings)
    with house.db.write() as session:
        for n in range(3):
            session.add(ledgers.new_job(id=f"batch_old_{n}", state="succeeded", completed_at=1.0))
            session.add_all(ledgers.cuts(f"batch_old_{n}", [1]))

    left = []
    for seconds in (59, 2, 1, 1):
        house.tick(seconds)
        with house.db.read() as session:
            left.append(len(session.scalars(select(Shard)).all()))

    assert left == [3, 2, 1, 0]


@pytest.mark.parametrize("end", ["failed_at", "expired_at", "cancelled_at"])
def test_retention_counts_from_the_end_whatever_it_was(house: House, end: str) -> None:
    jobs = [ledgers.running(house.db, [1]).id for _ in range(2)]
    with house.db.write() as session:
        for job_id, at in zip(jobs, (1.0, now()), strict=True):
            ended = {"state": end.removesuffix("_at"), end: at}
            session.execute(update(Job).where(Job.id == job_id).values(ended))

    Retention(house.config, house.db, house.storage).run()

    with house.db.read() as session:
        assert set(session.scalars(select(Shard.job_id))) == {jobs[1]}


@pytest.mark.parametrize("transactions", [1, 2, 3])
def test_of_a_job_that_is_emptied_in_part_nothing_is_known_and_the_next_pass_empties_it(
    house: House, monkeypatch: pytest.MonkeyPatch, transactions: int
) -> None:
    """Of three shards, and four transactions for them and their segments."""
    monkeypatch.setattr("workers.dispatcher.retention._AT_ONCE", 2)
    job = ledgers.finishing(house.db, [1] * 3)
    ledgers.close(house.db, job.id)
    keeping = Retention(house.config, house.db, house.storage)
    breaths = iter(range(transactions - 1))

    def dies() -> None:
        next(breaths)

    with monkeypatch.context() as patch:
        patch.setattr(house.db, "breathe", dies)
        with pytest.raises(StopIteration):
            keeping._empty([job.id])
    with house.db.write() as session:
        known = batches.results_known(session, job, batches.FAILED)
        session.execute(update(Job).where(Job.id == job.id).values(completed_at=1.0))
    keeping.run()

    assert not known
    with house.db.read() as session:
        assert session.scalars(select(Shard)).all() == []
        assert session.scalars(select(Segment)).all() == []


def test_what_a_job_holds_of_deleted_results_goes_with_them_and_a_retry_still_knows_what_is_done(house: House) -> None:
    """Not while one of its two files is there. Its rows stay, the bytes of its segments do not."""
    done = ledgers.finishing(house.db, [2, 2], created_at=now())
    ledgers.close(house.db, done.id, output_file_id="file-out", error_file_id="file-err")
    live = ledgers.finishing(house.db, [1])
    paths = [row.path for job in (done, live) for row in ledgers.segments(house.db, job.id)]
    for path in paths:
        house.storage.put(path, b"x")
    with house.db.write() as session:
        session.add(new_file("file-out", filename=f"{done.id}_output.jsonl", purpose=batches.OUTPUT, deleted_at=1.0))
        session.add(new_file("file-err", filename=f"{done.id}_error.jsonl", purpose=batches.OUTPUT))
        session.add(new_file("file-x", filename=f"{live.id}_output.jsonl", deleted_at=1.0))  # as a client calls it
    keeping = Retention(house.config, house.db, house.storage)

    keeping.run()
    kept = house.storage.list("jobs")
    with house.db.write() as session:
        session.execute(update(File).where(File.id == "file-err").values(deleted_at=1.0))
    keeping.run()

    assert kept == sorted(paths)
    assert house.storage.list("jobs") == [row.path for row in ledgers.segments(house.db, live.id)]
    assert len(ledgers.segments(house.db, done.id)) == 2
    with house.db.read() as session:
        assert session.get(File, "file-out") is session.get(File, "file-err") is None


def test_a_retrys_copy_of_a_deleted_input_goes_with_it_when_nobody_reads_it(house: House) -> None:
    facts = {"input_file_id": "file-in", "created_at": now()}
    first = ledgers.finishing(house.db, [2], input_path="files/file-in", **facts)
    ledgers.close(house.db, first.id)
    again = ledgers.finishing(house.db, [1], input_path="jobs/again/input-1.jsonl", retry_of=first.id, **facts)
    for path in ("files/file-in", "jobs/again/input-1.jsonl"):
        house.storage.put(path, b"x")
    with house.db.write() as session:
        session.add(new_file("file-in", deleted_at=1.0))
    keeping = Retention(house.config, house.db, house.storage)

    keeping.run()
    kept = house.storage.list("jobs")
    ledgers.close(house.db, again.id)
    keeping.run()

    assert kept == ["jobs/again/input-1.jsonl"]
    assert house.storage.list("jobs") == house.storage.list("files") == []


def test_audit_rows_of_a_busy_second_are_sealed_over_several(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_PAGES_AT_ONCE", 2)
    with house.db.write() as session:
        for n in range(2 * WRITE_ROWS + 1):
            audit.record(session, actor="key:test", action="file.create", target=f"file-{n}", project_id="p")

    open_ends = []
    for _ in range(2):
        house.tick(1)
        with house.db.read() as session:
            open_ends.append(audit.unsealed(session))

    assert open_ends == [True, False]
    with house.db.read() as session:
        assert audit.verify(session).faults == ()


def test_the_leader_numbers_the_events_of_a_second(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_PAGES_AT_ONCE", 1)
    job = ledgers.submitted(house.db)
    with house.db.write() as session:
        facts: dict[str, Any] = {"subject_id": "other", "project_id": job.project_id, "type": "t", "data": {}}
        for seq in range(1, WRITE_ROWS + 1):
            events.record(session, seq=seq, **facts)

    lengths = []
    for _ in range(2):
        house.tick(1)
        with house.db.read() as session:
            lengths.append(feed.bounds(session, job.project_id).position)

    assert lengths == [WRITE_ROWS, WRITE_ROWS + 1]


def test_the_leader_sends_the_head_of_the_audit_log_away(house: House, tmp_path: Path) -> None:
    file = tmp_path / "anchors.jsonl"
    config = house.config.model_copy(update={"audit_anchor": str(file)})
    house.dispatcher._house._anchoring = Anchoring(config, house.db)
    with house.db.write() as session:
        audit.record(session, actor="key:test", action="file.create", target="file-1", project_id="p")

    for _ in range(3):
        house.tick(61)

    ((seal, digest),) = anchors.read(file)
    with house.db.read() as session:
        assert audit.verify(session, anchors=[(seal, digest)]).faults == ()
