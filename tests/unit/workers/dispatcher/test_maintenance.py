"""The dispatcher does its maintenance: retention, seals, bytes that nothing points to."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import ColumnElement, SQLColumnExpression, delete, exists, select, update

from jobs.batches import batches
from jobs.clock import now
from jobs.db.engine import WRITE_ROWS
from jobs.files.tables import File, Upload, UploadPart
from jobs.inference import request_counts
from jobs.inference.request_counts import ShadowCounts, ShadowKey
from jobs.ledger import anchors, audit, events, feed, kinds, ledger, outbox, shards
from jobs.ledger.kinds import Kind, Payload
from jobs.ledger.states import LIVE, JobState
from jobs.ledger.tables import AuditHead, Job, Outbox, Segment, Shard, Total
from jobs.platform import processes
from jobs.registry import aliases
from jobs.registry.tables import Alias
from jobs.security import keys
from jobs.security.audit_key import audit_key, create_audit_key
from jobs.security.tables import Idempotency
from jobs.timings import Timings
from jobs.webhooks.deliveries import PARKED_UNTIL
from jobs.webhooks.tables import Delivery, Event, WebhookEndpoint
from tests.support import sample_jobs
from tests.support.dispatcher import DispatcherHarness, new_file, project_of
from workers.dispatcher import maintenance, retention
from workers.dispatcher.anchoring import Anchoring
from workers.dispatcher.loop import Dispatcher
from workers.dispatcher.retention import Retention


class Diary:
    """The transactions of maintenance, and when it lets others write."""

    def __init__(self, harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch) -> None:
        self.harness, self.monkeypatch, self.done = harness, monkeypatch, list[str]()

    def run(self, after: float) -> None:
        self.harness.clock.at += after
        self.harness.heartbeat("w")
        with self.monkeypatch.context() as patch:
            for name in ("write", "breathe"):
                patch.setattr(self.harness.db, name, partial(self._note, name, getattr(self.harness.db, name)))
            self.harness.dispatcher._maintenance.run()

    def _note(self, name: str, do: Callable[[], Any]) -> Any:
        self.done.append(name)
        return do()


def test_maintenance_yields_to_other_writers_after_each_transaction(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary, project = Diary(harness, monkeypatch), project_of(harness.db, "one")
    host, pid, started = processes.me()
    harness.worker()
    for n in range(3):
        harness.worker(f"dead{n}", host=host, pid=pid, started=started + 1)
    diary.run(0)  # removes dead workers
    for n in range(6):
        job = sample_jobs.running(harness.db, project_id=project)
        sample_jobs.claim_shard(harness.db, job.id, worker="w")
        if n % 2:
            with harness.db.write() as session:
                ledger.cancel(session, job.id, actor="key:test")
    diary.run(1)
    diary.run(3.5)  # revokes claims of stopping jobs
    for _ in range(3):
        sample_jobs.planning(harness.db, project_id=project)
        sample_jobs.finishing(harness.db, project_id=project)
        sample_jobs.running(harness.db, project_id=project, model="gone")
    with harness.db.write() as session:
        session.query(Outbox).delete()
    diary.run(1)
    for _ in range(4):
        diary.run(8)  # revokes claims, advances jobs, notes what they wait for

    assert diary.done == ["write", "breathe"] * (len(diary.done) // 2)
    assert diary.done.count("write") > 3 * 6


def test_deleted_file_is_purged_after_its_last_live_job(harness: DispatcherHarness) -> None:
    live = sample_jobs.running(harness.db, [1], input_file_id="file-read")
    with harness.db.write() as session:
        for name, life in (("file-read", {"deleted_at": 1.0}), ("file-late", {"expires_at": 1.0}), ("file-kept", {})):
            harness.storage.put(f"files/{name}", b"x")
            session.add(new_file(name, **life))
    keeping = Retention(harness.config, harness.db, harness.storage)

    keeping.run()
    kept = harness.storage.list("files")
    with harness.db.write() as session:
        ledger.cancel(session, live.id, actor="key:test")
    sample_jobs.close(harness.db, live.id)
    keeping.run()

    assert kept == ["files/file-kept", "files/file-read"]
    assert harness.storage.list("files") == ["files/file-kept"]


@pytest.mark.parametrize("field", [Job.error_file_id, Job.payload["judged_file"].as_string()])
def test_file_is_protected_by_every_live_job_that_reads_it(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch, field: Any
) -> None:
    def holds(file_id: SQLColumnExpression[str]) -> ColumnElement[bool]:
        return exists().where(field == file_id, Job.state.in_(LIVE))

    monkeypatch.setitem(kinds.TABLE, "judging", Kind("judging", "Judging", "judge_", Payload, {}, holds=holds))
    facts = {"error_file_id": "file-read", "payload": {"judged_file": "file-read"}}
    live = sample_jobs.running(harness.db, [1], kind="judging", **facts)
    harness.storage.put("files/file-read", b"x")
    with harness.db.write() as session:
        session.add(new_file("file-read", deleted_at=1.0))
    keeping = Retention(harness.config, harness.db, harness.storage)

    keeping.run()
    kept = harness.storage.list("files")
    with harness.db.write() as session:
        ledger.cancel(session, live.id, actor="key:test")
    sample_jobs.close(harness.db, live.id)
    keeping.run()

    assert (kept, harness.storage.list("files")) == (["files/file-read"], [])


def test_retention_expires_overdue_uploads_and_old_idempotency_keys(harness: DispatcherHarness) -> None:
    harness.storage.put("uploads/u/p", b"x")
    facts = {"filename": "f", "purpose": "batch", "mime_type": "m", "bytes": 1, "created_at": 1.0}
    with harness.db.write() as session:
        session.add(Upload(id="u", project_id="p", expires_at=now() - 1, **facts))
        session.add(UploadPart(id="p", upload_id="u", bytes=1, path="uploads/u/p", created_at=1.0))
        session.add(Idempotency(project_id="p", route="r", key="k", heartbeat_at=1.0, created_at=1.0))

    Retention(harness.config, harness.db, harness.storage).run()

    with harness.db.read() as session:
        assert session.get_one(Upload, "u").status == "expired"
        assert session.get(Idempotency, ("p", "r", "k")) is None
    assert harness.storage.list("uploads") == []


def test_retention_removes_old_upload_rows_after_their_parts(harness: DispatcherHarness) -> None:
    facts = {"project_id": "p", "filename": "f", "purpose": "batch", "mime_type": "m", "bytes": 1, "created_at": 1.0}
    long_ago = now() - harness.config.retention_seconds
    ends = {"old": long_ago - 1, "parts": long_ago - 1, "new": long_ago + 60}
    harness.storage.put("uploads/parts/p", b"x")
    with harness.db.write() as session:
        session.add_all(Upload(id=name, status="completed", expires_at=at, **facts) for name, at in ends.items())
        session.add(Upload(id="waits", status="pending", expires_at=now() + 60, **facts))
        session.add(UploadPart(id="p", upload_id="parts", bytes=1, path="uploads/parts/p", created_at=1.0))

    left = []
    for _ in range(2):
        Retention(harness.config, harness.db, harness.storage).run()
        with harness.db.read() as session:
            left.append(set(session.scalars(select(Upload.id))))

    assert left[-1] == {"new", "waits"}
    assert harness.storage.list("uploads") == []


def test_retention_empties_jobs_that_ended_long_ago_and_keeps_their_row(harness: DispatcherHarness) -> None:
    """Not one that came as long ago and has just ended."""
    old, late = (sample_jobs.finishing(harness.db, [2, 2]) for _ in range(2))
    for job in (old, late):
        sample_jobs.close(harness.db, job.id)
        harness.storage.put(f"jobs/{job.id}/000000-1-0.jsonl", b"x")
    with harness.db.write() as session:
        session.execute(update(Job).where(Job.id == old.id).values(completed_at=1.0))

    Retention(harness.config, harness.db, harness.storage).run()

    with harness.db.read() as session:
        assert set(session.scalars(select(Shard.job_id))) == {late.id}
        assert set(session.scalars(select(Segment.job_id))) == {late.id}
    assert harness.storage.list("jobs") == [f"jobs/{late.id}/000000-1-0.jsonl"]
    assert sample_jobs.state(harness.db, old.id) == JobState.SUCCEEDED


def test_parked_deliveries_of_enabled_endpoint_are_released_in_pages(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pages of two each time."""
    for name in ("WRITE_ROWS", "_UNPARKED_AT_ONCE"):
        monkeypatch.setattr(maintenance, name, 2)
    facts = {"name": "n", "url": "u", "event_types": [], "secret": "s", "created_at": 1.0, "project_id": "p"}
    with harness.db.write() as session:
        session.add(WebhookEndpoint(id="we_on", **facts))
        session.add(WebhookEndpoint(id="we_off", disabled_at=1.0, **facts))
        for n, endpoint in enumerate(["we_on"] * 5 + ["we_off"]):
            pending = {"endpoint_id": endpoint, "due_at": PARKED_UNTIL, "project_id": "p", "created_at": 1.0}
            session.add(Delivery(id=f"wh_{n}", event_id="evt", **pending))

    held = []
    for _ in range(3):
        harness.tick(6)
        with harness.db.read() as session:
            held.append(sorted(session.scalars(select(Delivery.endpoint_id).where(Delivery.due_at >= PARKED_UNTIL))))

    assert held == [["we_off", "we_on"], ["we_off"], ["we_off"]]


def test_search_for_lost_messages_writes_only_for_missing_messages(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Search without a transaction, and mend in one only what was found."""
    mended: list[int] = []
    restore_messages = shards.restore_messages
    monkeypatch.setattr(shards, "restore_messages", lambda *given: mended.append(restore_messages(*given)))
    job = sample_jobs.running(harness.db, [1])

    harness.tick(6)
    at_first = list(mended)
    with harness.db.write() as session:
        session.execute(delete(Outbox).where(Outbox.job_id == job.id))
    harness.tick(6)

    assert (at_first, mended) == ([], [1])


def test_retention_continues_unfinished_work_every_second(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_JOBS_AT_ONCE", 1)
    timings = replace(Timings(), retention_pass=0.0, retention_more=0.0)
    harness.dispatcher = Dispatcher(harness.config, harness.db, harness.storage, harness.broker, harness.clock, timings)
    with harness.db.write() as session:
        for n in range(3):
            session.add(sample_jobs.new_job(id=f"batch_old_{n}", state="succeeded", completed_at=1.0))
            session.add_all(sample_jobs.cuts(f"batch_old_{n}", [1]))

    left = []
    for seconds in (59, 2, 1, 1):
        harness.tick(seconds)
        with harness.db.read() as session:
            left.append(len(session.scalars(select(Shard)).all()))

    assert left == [3, 2, 1, 0]


@pytest.mark.parametrize("end", ["failed_at", "expired_at", "cancelled_at"])
def test_retention_period_starts_at_end_of_job_in_any_terminal_state(harness: DispatcherHarness, end: str) -> None:
    jobs = [sample_jobs.running(harness.db, [1]).id for _ in range(2)]
    with harness.db.write() as session:
        for job_id, at in zip(jobs, (1.0, now()), strict=True):
            ended = {"state": end.removesuffix("_at"), end: at}
            session.execute(update(Job).where(Job.id == job_id).values(ended))

    Retention(harness.config, harness.db, harness.storage).run()

    with harness.db.read() as session:
        assert set(session.scalars(select(Shard.job_id))) == {jobs[1]}


@pytest.mark.parametrize("transactions", [1, 2, 3])
def test_of_a_job_that_is_emptied_in_part_nothing_is_known_and_the_next_pass_empties_it(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch, transactions: int
) -> None:
    """Of three shards, and four transactions for them and their segments."""
    monkeypatch.setattr("workers.dispatcher.retention._AT_ONCE", 2)
    job = sample_jobs.finishing(harness.db, [1] * 3)
    sample_jobs.close(harness.db, job.id)
    keeping = Retention(harness.config, harness.db, harness.storage)
    breaths = iter(range(transactions - 1))

    def dies() -> None:
        next(breaths)

    with monkeypatch.context() as patch:
        patch.setattr(harness.db, "breathe", dies)
        with pytest.raises(StopIteration):
            keeping._remove_results([job.id])
    with harness.db.write() as session:
        known = batches.results_known(session, job, batches.FAILED)
        session.execute(update(Job).where(Job.id == job.id).values(completed_at=1.0))
    keeping.run()

    assert not known
    with harness.db.read() as session:
        assert session.scalars(select(Shard)).all() == []
        assert session.scalars(select(Segment)).all() == []


def test_segment_bytes_are_purged_with_last_result_file_and_rows_stay(
    harness: DispatcherHarness,
) -> None:
    """Not while one of its two files is there. Its rows stay, the bytes of its segments do not."""
    done = sample_jobs.finishing(harness.db, [2, 2], created_at=now())
    sample_jobs.close(harness.db, done.id, output_file_id="file-out", error_file_id="file-err")
    live = sample_jobs.finishing(harness.db, [1])
    paths = [row.path for job in (done, live) for row in sample_jobs.segments(harness.db, job.id)]
    for path in paths:
        harness.storage.put(path, b"x")
    with harness.db.write() as session:
        session.add(new_file("file-out", filename=f"{done.id}_output.jsonl", purpose=batches.OUTPUT, deleted_at=1.0))
        session.add(new_file("file-err", filename=f"{done.id}_error.jsonl", purpose=batches.OUTPUT))
        session.add(new_file("file-x", filename=f"{live.id}_output.jsonl", deleted_at=1.0))  # as a client calls it
    keeping = Retention(harness.config, harness.db, harness.storage)

    keeping.run()
    kept = harness.storage.list("jobs")
    with harness.db.write() as session:
        session.execute(update(File).where(File.id == "file-err").values(deleted_at=1.0))
    keeping.run()

    assert kept == sorted(paths)
    assert harness.storage.list("jobs") == [row.path for row in sample_jobs.segments(harness.db, live.id)]
    assert len(sample_jobs.segments(harness.db, done.id)) == 2
    with harness.db.read() as session:
        assert session.get(File, "file-out") is session.get(File, "file-err") is None


def test_retry_copy_of_deleted_input_is_purged_after_its_last_reader(harness: DispatcherHarness) -> None:
    facts = {"input_file_id": "file-in", "created_at": now()}
    first = sample_jobs.finishing(harness.db, [2], input_path="files/file-in", **facts)
    sample_jobs.close(harness.db, first.id)
    again = sample_jobs.finishing(harness.db, [1], input_path="jobs/again/input-1.jsonl", retry_of=first.id, **facts)
    for path in ("files/file-in", "jobs/again/input-1.jsonl"):
        harness.storage.put(path, b"x")
    with harness.db.write() as session:
        session.add(new_file("file-in", deleted_at=1.0))
    keeping = Retention(harness.config, harness.db, harness.storage)

    keeping.run()
    kept = harness.storage.list("jobs")
    sample_jobs.close(harness.db, again.id)
    keeping.run()

    assert kept == ["jobs/again/input-1.jsonl"]
    assert harness.storage.list("jobs") == harness.storage.list("files") == []


def test_jobs_that_ended_are_added_to_the_totals_within_a_second(harness: DispatcherHarness) -> None:
    sample_jobs.close(harness.db, sample_jobs.finishing(harness.db).id)

    harness.tick(1)

    with harness.db.read() as session:
        totals = session.execute(select(Total.label, Total.part, Total.count).where(Total.name == "jobs")).all()
        assert session.scalar(select(AuditHead.counted)) == session.scalar(select(AuditHead.seal))
    assert totals == [("generation", "succeeded", 1)]


def test_audit_rows_of_a_busy_second_are_sealed_over_several(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_PAGES_AT_ONCE", 2)
    with harness.db.write() as session:
        for n in range(2 * WRITE_ROWS + 1):
            audit.record(session, actor="key:test", action="file.create", target=f"file-{n}", project_id="p")

    open_ends = []
    for _ in range(2):
        harness.tick(1)
        with harness.db.read() as session:
            open_ends.append(audit.unsealed(session))

    assert open_ends == [True, False]
    with harness.db.read() as session:
        assert audit.verify(session).faults == ()


def test_the_leader_numbers_the_toldof_a_second(harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_PAGES_AT_ONCE", 1)
    job = sample_jobs.submitted(harness.db)
    with harness.db.write() as session:
        facts: dict[str, Any] = {"subject_id": "other", "project_id": job.project_id, "type": "t", "data": {}}
        for seq in range(1, WRITE_ROWS + 1):
            events.record(session, seq=seq, **facts)

    lengths = []
    for _ in range(2):
        harness.tick(1)
        with harness.db.read() as session:
            lengths.append(feed.bounds(session, job.project_id).position)

    assert lengths == [WRITE_ROWS, WRITE_ROWS + 1]


def test_the_leader_continues_the_signature_of_the_audit_log(harness: DispatcherHarness) -> None:
    harness.config.data_dir.mkdir(exist_ok=True)
    create_audit_key(harness.db, harness.config)
    with harness.db.write() as session:
        audit.record(session, actor="key:test", action="file.create", target="file-1", project_id="p")

    harness.tick(61)

    with harness.db.read() as session:
        verdict = audit.verify(session, key=audit_key(harness.config))
    assert verdict.signed == verdict.rows > 0
    assert verdict.faults == ()


def test_leader_anchors_head_of_audit_log(harness: DispatcherHarness, tmp_path: Path) -> None:
    file = tmp_path / "anchors.jsonl"
    config = harness.config.model_copy(update={"audit_anchor": str(file)})
    harness.dispatcher._maintenance._anchoring = Anchoring(config, harness.db)
    with harness.db.write() as session:
        audit.record(session, actor="key:test", action="file.create", target="file-1", project_id="p")

    for _ in range(3):
        harness.tick(61)

    ((seal, digest),) = anchors.read(file)
    with harness.db.read() as session:
        assert audit.verify(session, anchors=[(seal, digest)]).faults == ()


def test_jobs_of_a_revoked_key_are_cancelled_within_a_second(harness: DispatcherHarness) -> None:
    with harness.db.write() as session:
        key_id = keys.id_of(keys.create_key(session, "one"))
    owner = {"key_id": key_id, "project_id": project_of(harness.db, "one")}
    jobs = [sample_jobs.submitted(harness.db, **owner), sample_jobs.running(harness.db, **owner)]
    harness.tick(after=2)
    before = [sample_jobs.job(harness.db, job.id).state for job in jobs]
    with harness.db.write() as session:
        keys.revoke_key(session, key_id)

    harness.tick(after=1)

    assert before == [JobState.QUEUED, JobState.RUNNING]
    assert {sample_jobs.job(harness.db, job.id).state for job in jobs} == {JobState.CANCELLING}


def test_job_at_a_spend_limit_is_released_only_while_prices_are_known(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = sample_jobs.running(harness.db, project_id=project_of(harness.db, "one"))
    harness.worker()
    with harness.db.write() as session:
        ledger.wait_for(session, job.id, outbox.SPEND_LIMIT)

    with monkeypatch.context() as patch:
        patch.setattr(harness.dispatcher._maintenance, "_registry", lambda: None)
        harness.tick(6)
    held = sample_jobs.job(harness.db, job.id).waiting_for
    harness.tick(6)

    assert (held, sample_jobs.job(harness.db, job.id).waiting_for) == (outbox.SPEND_LIMIT, None)


def test_shadow_that_is_sent_nothing_has_a_single_event(harness: DispatcherHarness) -> None:
    project = project_of(harness.db, "one")
    with harness.db.write() as session:
        alias = Alias(project_id=project, name="bot", created_at=now(), created_by="test")
        shadowed = msgspec.structs.replace(aliases.single("old"), shadow=aliases.Shadow("new"))
        aliases.move(session, alias, shadowed, "create", actor="test")
        alias.shadow_since = now() - 3600
        key = ShadowKey(project, "bot", "new", int(now()) // 60 * 60 - 300)
        request_counts.write(session, {key: ShadowCounts(requests=5, failed=5)})

    for _ in range(2):
        harness.tick(120)

    with harness.db.read() as session:
        told = session.scalars(select(Event).where(Event.type == aliases.SHADOW_SILENT)).all()
    assert [event.data["routing"]["shadow"]["model"] for event in told] == ["new"]
