"""A handler whose claim, disk, input or process goes while it works: what it leaves, and how the job goes on."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.errors import StorageFull
from jobs.files.tables import File
from jobs.ledger import ledger, shards
from jobs.ledger.states import JobState, ShardState
from jobs.ledger.tables import Job, Segment, Shard
from jobs.platform.storage import DiskStorage
from jobs.queues import Task
from jobs.timings import Timings
from tests.support import sample_jobs
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL, InlineDeployment, chat_line, jsonl, running
from workers import lifecycle
from workers.batches import running as running_module
from workers.engines.port import Answer, EngineBusy, Request
from workers.lifecycle import finish, run
from workers.runtime.engine_host import EngineHost
from workers.runtime.heartbeat import ClaimHandle, Heartbeat

pytestmark = pytest.mark.verify


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def inline(
    db: Database, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[InlineDeployment]:
    monkeypatch.setattr(lifecycle, "MAX_TRIES", 1)
    with running(db, tmp_path, FakeEngine((MODEL,), on_prompt=asked.append), min_free_bytes=2) as made:
        yield made


@pytest.fixture
def handles(monkeypatch: pytest.MonkeyPatch) -> list[ClaimHandle]:
    """Every claim that a handler holds, from now on."""
    found: list[ClaimHandle] = []
    watching = Heartbeat.watching

    @contextmanager
    def noting(heartbeat: Heartbeat, *claim: Any) -> Iterator[ClaimHandle]:
        with watching(heartbeat, *claim) as handle:
            found.append(handle)
            yield handle

    monkeypatch.setattr(Heartbeat, "watching", noting)
    return found


def _batch(count: int) -> bytes:
    return jsonl([chat_line(f"r{n}", f"hello {n}") for n in range(count)])


def _ids(lines: list[dict[str, Any]]) -> list[str]:
    return [line["custom_id"] for line in lines]


def _planned(inline: InlineDeployment, content: bytes) -> str:
    """Create a job whose shards are not published yet."""
    return _unclaimed(inline, content, Task.RUN, JobState.RUNNING)


def _run_through(inline: InlineDeployment, content: bytes) -> str:
    """Create a job that waits to be finished."""
    return _unclaimed(inline, content, Task.FINISH, JobState.FINISHING)


def _unclaimed(inline: InlineDeployment, content: bytes, lost: Task, reached: JobState) -> str:
    inline.lose_messages = lambda task: task == lost
    job_id = inline.submit(content)
    inline.until(lambda: inline.job(job_id).state == reached)
    inline.lose_messages = lambda _task: False
    return job_id


def _cancelled_unplanned(inline: InlineDeployment, content: bytes, **fields: Any) -> str:
    job_id = inline.submit(content, **fields)
    _cancel(inline, job_id)
    return job_id


def _cancel(inline: InlineDeployment, job_id: str) -> None:
    with inline.db.write() as session:
        ledger.cancel(session, job_id, actor="test")


def _count(db: Database, table: type[Any]) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def _at_the_first_read(monkeypatch: pytest.MonkeyPatch, happens: Any) -> None:
    reader = DiskStorage.reader

    def reading(storage: DiskStorage, path: str, offset: int = 0) -> Any:
        monkeypatch.setattr(DiskStorage, "reader", reader)
        happens()
        return reader(storage, path, offset)

    monkeypatch.setattr(DiskStorage, "reader", reading)


def test_worker_that_is_stopped_while_its_engine_loads_takes_nothing(inline: InlineDeployment) -> None:
    job_id = _planned(inline, _batch(1))
    loading = EngineHost(FakeEngine(), lambda: None)
    inline.gpu.stop.set()

    run(inline.gpu, loading, job_id, 0)

    shard = sample_jobs.shard(inline.db, job_id)
    assert (shard.state, shard.epoch) == (ShardState.PENDING, 0)
    loading.loop.close()


def test_stopping_worker_releases_shard_without_failed_attempt(inline: InlineDeployment, asked: list[str]) -> None:
    job_id = _planned(inline, _batch(1))
    inline.gpu.heartbeat.stop_all()

    run(inline.gpu, inline.host, job_id, 0)

    shard = sample_jobs.shard(inline.db, job_id)
    assert (shard.state, shard.epoch, shard.stalls) == (ShardState.PENDING, 2, 0)
    assert inline.job(job_id).lost_leases == 0
    assert asked == []


def test_a_running_batch_waits_below_the_setting_and_goes_on_without_a_failed_line(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [1000, 999]  # the second from the first question on

    def asked(_prompt: str) -> None:
        free[:] = free[-1:]

    monkeypatch.setattr(DiskStorage, "free", lambda _self: free[0])
    timings = replace(Timings(), storage_retry=0.2)
    with running(db, tmp_path, FakeEngine((MODEL,), on_prompt=asked), timings, min_free_bytes=1000) as inline:
        job_id = inline.submit(_batch(80))
        inline.until(lambda: inline.job(job_id).waiting_for == "disk")
        inline.wait_until_idle()
        waiting = inline.job(job_id)
        free[:] = [1000]
        (job,) = inline.drain(job_id)

    assert waiting.state == JobState.RUNNING
    assert (job.state, job.completed, job.failed) == (JobState.SUCCEEDED, 80, 0)


def test_shard_waits_while_the_disk_is_nearly_full(
    inline: InlineDeployment, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = _planned(inline, _batch(3))
    inline.gpu = replace(inline.gpu, timings=replace(Timings(), storage_retry=0.05))
    with monkeypatch.context() as patch:
        patch.setattr(DiskStorage, "free", lambda _self: 0)
        run(inline.gpu, inline.host, job_id, 0)
    assert (inline.job(job_id).waiting_for, asked) == ("disk", [])

    (job,) = inline.drain(job_id)

    assert (job.state, job.waiting_for, job.completed) == (JobState.SUCCEEDED, None, 3)


def test_shard_waits_for_an_engine_that_stays_busy_and_goes_on_where_it_was(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    def busy(request: Request) -> Exception | None:
        return EngineBusy("Full.") if "1" in str(request.body["messages"]) and not served else None

    served: list[str] = []
    timings = replace(Timings(), engine_busy=0.2)
    with running(db, tmp_path, FakeEngine((MODEL,), on_prompt=asked.append, fault=busy), timings) as inline:
        job_id = _planned(inline, _batch(2))
        run(inline.gpu, inline.host, job_id, 0)
        assert (inline.job(job_id).waiting_for, sample_jobs.shard(db, job_id).done) == ("model", 1)

        served.append("there is room")
        run(inline.gpu, inline.host, job_id, 0)

        assert inline.drain(job_id)[0].completed == 2
    assert asked.count("hello 0") == 1


def test_shard_that_was_lost_while_it_was_read_is_not_run(
    inline: InlineDeployment, asked: list[str], handles: list[ClaimHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = _planned(inline, _batch(3))
    handles.clear()

    def lose() -> None:
        with inline.db.write() as session:
            shards.revoke_running(session, job_id)
        assert handles[0].lost.wait(30)

    _at_the_first_read(monkeypatch, lose)
    run(inline.gpu, inline.host, job_id, 0)

    assert asked == []
    assert sample_jobs.shard(inline.db, job_id).epoch == 2
    assert inline.drain(job_id)[0].completed == 3


class Halting(FakeEngine):
    """Answers no odd prompt until it is let go."""

    freed = False

    async def answer(self, request: Request) -> Answer:
        answer = await super().answer(request)
        if not self.freed and request.body["messages"][0]["content"][-1] in "13579":
            await asyncio.sleep(600)
        return answer


def test_answers_of_lost_claim_are_dropped_and_requested_by_next_claim(
    db: Database, tmp_path: Path, asked: list[str]
) -> None:
    engine = Halting((MODEL,), on_prompt=asked.append)
    with running(db, tmp_path, engine, segment_seconds=60) as inline, ThreadPoolExecutor(1) as threads:
        job_id = _planned(inline, _batch(4))
        zombie = threads.submit(run, inline.gpu, inline.host, job_id, 0)
        inline.lose_messages = lambda task: task == Task.RUN
        inline.until(lambda: len(asked) == 4)
        with db.write() as session:
            shards.revoke_running(session, job_id)
        engine.freed = True
        zombie.result(30)
        assert _count(db, Segment) == 0

        inline.lose_messages = lambda _task: False
        (job,) = inline.drain(job_id)

        assert _ids(inline.results(job)[0]) == ["r0", "r1", "r2", "r3"]
    assert set(Counter(asked).values()) == {2}
    assert (job.completed, job.failed) == (4, 0)


def test_careful_shard_of_a_cancelled_job_tries_no_further_line(inline: InlineDeployment, asked: list[str]) -> None:
    job_id = _planned(inline, jsonl([chat_line(f"r{n}", prompt) for n, prompt in enumerate(["a", "b !hang", "c"])]))
    with inline.db.write() as session:
        session.execute(update(Shard).where(Shard.job_id == job_id).values(stalls=2))
    inline.until(lambda: "b !hang" in asked)

    _cancel(inline, job_id)
    (job,) = inline.drain(job_id)

    output, errors = inline.results(job)
    assert (_ids(output), _ids(errors)) == (["r0"], ["r1", "r2"])
    assert asked == ["a", "b !hang"]
    assert sample_jobs.shard(inline.db, job_id).isolated_line == 1, "no line is blamed that was not tried"


def test_lines_of_a_shard_that_were_answered_before_the_cancel_keep_their_answers(
    inline: InlineDeployment, asked: list[str]
) -> None:
    job_id = inline.submit(jsonl([chat_line(f"r{n}", "!hang" if n % 2 else "x") for n in range(4)]))
    inline.until(lambda: _count(inline.db, Segment) == 1)

    _cancel(inline, job_id)
    (job,) = inline.drain(job_id)

    output, errors = inline.results(job)
    assert (_ids(output), _ids(errors)) == (["r0", "r2"], ["r1", "r3"])
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}


def test_fully_answered_shard_is_closed_without_engine_call(inline: InlineDeployment, asked: list[str]) -> None:
    job_id = _planned(inline, _batch(2))
    earlier = sample_jobs.claim_shard(inline.db, job_id)
    data = b"".join(b'%d\t1\t{"custom_id":"r%d"}\n' % (n, n) for n in range(2))
    inline.storage.put("segment", data)
    with inline.db.write() as session:
        shards.commit(session, earlier, 0, "segment", len(data), shards.Tally(covered=0b11, good=0b11), last=False)
        shards.revoke_running(session, job_id)

    (job,) = inline.drain(job_id)

    assert (_ids(inline.results(job)[0]), asked) == (["r0", "r1"], [])


@pytest.mark.parametrize("begin", [_run_through, _cancelled_unplanned])
def test_finisher_that_lost_its_claim_leaves_nothing_behind(
    inline: InlineDeployment, handles: list[ClaimHandle], monkeypatch: pytest.MonkeyPatch, begin: Any
) -> None:
    job_id = begin(inline, _batch(20))
    before = inline.job(job_id).state
    handles.clear()

    def lose() -> None:
        with inline.db.write() as session:
            assert ledger.release(session, job_id, handles[0].epoch)
        assert handles[0].lost.wait(30)

    _at_the_first_read(monkeypatch, lose)
    finish(inline.cpu, job_id)

    assert inline.job(job_id).state == before
    assert inline.storage.list("files") == [inline.job(job_id).input_path]
    (job,) = inline.drain(job_id)
    assert sum(map(len, inline.results(job))) == 20


def test_single_shard_job_is_finished_without_message(inline: InlineDeployment) -> None:
    published: list[str] = []
    inline.lose_messages = lambda task: published.append(task) is not None

    [small] = inline.drain(inline.submit(_batch(8)))

    assert (small.state, len(inline.results(small)[0])) == (JobState.SUCCEEDED, 8)
    assert Task.FINISH not in published
    assert sample_jobs.outbox_messages(inline.db, small.id) == []


def _in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the end of a job out of the transaction of its last segment, as if it had several segments."""
    monkeypatch.setattr(running_module, "assemble", lambda *_: None)


def test_job_that_is_answered_at_once_ends_with_its_only_segment(
    inline: InlineDeployment, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    monkeypatch.setattr(lifecycle, "finish", lambda *_: pytest.fail("it was over"))
    job_id = _planned(inline, _batch(3))

    run(inline.gpu, inline.host, job_id, 0)

    job = inline.job(job_id)
    assert (job.state, job.completed, job.total, job.worker_id) == (JobState.SUCCEEDED, 3, 3, None)
    assert _ids(inline.results(job)[0]) == ["r0", "r1", "r2"]
    assert sample_jobs.outbox_messages(inline.db, job_id) == []


def test_finisher_decides_results_of_job_cancelled_during_storing(
    inline: InlineDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = _planned(inline, _batch(3))
    assemble = running_module.assemble

    def assembling(*of: Any) -> Any:
        results = assemble(*of)
        with inline.db.write() as session:
            ledger.cancel(session, job_id, actor="someone")
        return results

    monkeypatch.setattr(running_module, "assemble", assembling)
    run(inline.gpu, inline.host, job_id, 0)

    job = inline.job(job_id)
    assert (job.state, len(inline.results(job)[0])) == (JobState.CANCELLED, 3)
    assert inline.storage.list("files") == sorted([str(job.input_path), f"files/{job.output_file_id}"])


def test_claim_lost_during_storing_leaves_no_object(
    inline: InlineDeployment, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    job_id = _planned(inline, _batch(3))
    assemble = running_module.assemble

    def assembling(*of: Any) -> Any:
        results = assemble(*of)
        with inline.db.write() as session:
            shards.revoke_running(session, job_id)
        return results

    with monkeypatch.context() as patch:
        patch.setattr(running_module, "assemble", assembling)
        run(inline.gpu, inline.host, job_id, 0)
    assert (inline.job(job_id).state, inline.storage.list("files")) == (
        JobState.RUNNING,
        [inline.job(job_id).input_path],
    )

    [job] = inline.drain(job_id)

    assert (job.state, len(inline.results(job)[0]), len(asked)) == (JobState.SUCCEEDED, 3, 6)


@pytest.mark.parametrize("then", ["all of it", "its claim", "a claim that was lost"])
def test_job_is_finished_after_the_answer_to_the_last_commit_was_lost(
    inline: InlineDeployment, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    job_id = _planned(inline, _batch(3))
    dialect, claim_finish, put = inline.gpu.db.engine.dialect, ledger.claim_finish, shards.commit
    commit, epochs, deaf = dialect.do_commit, list[int](), threading.local()
    if then != "all of it":
        _in_parts(monkeypatch)

    def going_on(session: Session, *of: Any) -> ledger.JobClaim | None:
        taken = claim_finish(session, *of)
        epochs.extend([taken.epoch] if taken else [])
        deaf.once = len(epochs) == 1 and taken is not None
        return taken

    def putting(session: Session, *of: Any, **how: Any) -> Job | None:
        if then == "a claim that was lost" and epochs:
            ledger.release(session, job_id, epochs[0])  # in between
        return put(session, *of, **how)

    def committing(connection: Any) -> None:
        commit(connection)
        if getattr(deaf, "once", False):
            deaf.once = False
            raise dialect.loaded_dbapi.OperationalError("the server closed the connection")  # type: ignore[union-attr]

    monkeypatch.setattr(ledger, "claim_finish", going_on)
    monkeypatch.setattr(shards, "commit", putting)
    monkeypatch.setattr(dialect, "do_commit", committing)
    run(inline.gpu, inline.host, job_id, 0)

    job = inline.job(job_id)
    assert (job.state, job.lost_leases, len(inline.results(job)[0])) == (JobState.SUCCEEDED, 0, 3)
    assert job.epoch - epochs[0] == (3 if then == "a claim that was lost" else 1)
    assert inline.storage.list("files") == sorted([str(job.input_path), f"files/{job.output_file_id}"])


def test_error_after_the_end_of_the_only_shard_does_not_prevent_the_finish(
    inline: InlineDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = _planned(inline, _batch(3))
    close = running_module.LineRun.close

    def closing(shard: running_module.LineRun) -> None:
        close(shard)
        raise ValueError("of nobody's making")

    monkeypatch.setattr(running_module.LineRun, "close", closing)
    with pytest.raises(ValueError, match="nobody's"):
        run(inline.gpu, inline.host, job_id, 0)

    assert inline.job(job_id).state == JobState.SUCCEEDED


def test_another_worker_finishes_the_job_of_a_worker_that_died_before_the_finish(
    inline: InlineDeployment, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    _in_parts(monkeypatch)
    monkeypatch.setattr(lifecycle, "finish", lambda *_: None)
    job_id = inline.submit(_batch(8))
    inline.until(lambda: inline.job(job_id).state == JobState.FINISHING)
    assert (inline.job(job_id).worker_id, sample_jobs.outbox_messages(inline.db, job_id)) == (inline.gpu.worker_id, [])

    [job] = inline.drain(job_id)

    assert (job.state, job.lost_leases, len(inline.results(job)[0])) == (JobState.SUCCEEDED, 1, 8)
    assert len(asked) == 8


def test_results_wait_for_a_disk_that_has_room(inline: InlineDeployment, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = _run_through(inline, _batch(20))

    def full(*_: object) -> None:
        raise StorageFull

    with monkeypatch.context() as patch:
        patch.setattr(DiskStorage, "writer", full)
        finish(inline.cpu, job_id)
    job = inline.job(job_id)
    assert (job.state, job.waiting_for, job.worker_id, job.failed_attempts) == (JobState.FINISHING, "disk", None, 0)
    assert sample_jobs.outbox_messages(inline.db, job_id) == [(Task.FINISH, -1)]

    finish(inline.cpu, job_id)

    job = inline.job(job_id)
    assert (job.state, len(inline.results(job)[0])) == (JobState.SUCCEEDED, 20)


def test_a_done_shard_without_all_its_results_fails_the_job_which_says_so_and_can_be_retried(
    inline: InlineDeployment,
) -> None:
    job_id = _run_through(inline, _batch(20))
    with inline.db.write() as session:
        session.execute(delete(Segment).where(Segment.job_id == job_id, Segment.n == 1))

    (job,) = inline.drain(job_id)

    (error,) = job.errors or []
    assert (job.state, error["code"]) == (JobState.FAILED, "results_lost")
    assert "8 lines of shard 1 have none" in error["message"]
    assert _count(inline.db, File) == 0

    (again,) = inline.drain(inline.submit(b"", input_path=job.input_path, retry_of=job_id))

    assert _ids(inline.results(again)[0]) == [f"r{n}" for n in range(20)], "also those whose results were not lost"


def test_results_that_were_never_assembled_are_missing_like_lost_ones(
    inline: InlineDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = _run_through(inline, _batch(20))
    with monkeypatch.context() as patch:
        patch.setattr("workers.runtime.output_lines.parse", lambda _raw: 1 / 0)
        finish(inline.cpu, job_id)
    job = inline.job(job_id)
    assert (job.state, (job.errors or [])[0]["code"]) == (JobState.FAILED, "internal_error")

    (again,) = inline.drain(inline.submit(b"", input_path=job.input_path, retry_of=job_id))

    assert _ids(inline.results(again)[0]) == [f"r{n}" for n in range(20)]


@pytest.mark.parametrize("gone", ["the file", "its bytes"])
def test_cancelled_batch_without_input_ends_without_files(inline: InlineDeployment, gone: str) -> None:
    fields = {"input_path": None} if gone == "the file" else {}
    job_id = _cancelled_unplanned(inline, _batch(3), **fields)
    for path in inline.storage.list("files"):
        inline.storage.delete(path)

    (job,) = inline.drain(job_id)

    assert (job.state, job.errors, job.total) == (JobState.CANCELLED, None, 0)
    assert (job.output_file_id, job.error_file_id) == (None, None)


def test_cancelled_batch_names_the_lines_that_have_a_name(inline: InlineDeployment) -> None:
    content = b'{"no": "name"}\nno line\n' + _batch(2)

    (job,) = inline.drain(_cancelled_unplanned(inline, content))

    assert _ids(inline.results(job)[1]) == ["r0", "r1"]
    assert job.total == 2


def test_a_body_that_no_engine_could_read_costs_its_own_line_only(inline: InlineDeployment, asked: list[str]) -> None:
    bad = jsonl([chat_line("bad", "x", temperature="T")]).replace(b'"T"', b"1e999")  # JSON, but no number

    (job,) = inline.drain(inline.submit(bad + _batch(2)))

    output, errors = inline.results(job)
    assert _ids(output) == ["r0", "r1"]
    assert [(line["custom_id"], line["response"]["status_code"]) for line in errors] == [("bad", 400)]
    assert len(asked) == 2
