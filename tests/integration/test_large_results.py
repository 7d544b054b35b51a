"""Results that are larger than a finisher may hold: vectors are megabytes a line."""

import asyncio
import json
import tracemalloc
from pathlib import Path

import pytest
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.ledger import ledger
from jobs.ledger.states import TERMINAL, JobState
from jobs.ledger.tables import Segment
from jobs.queues import Task
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL, InlineDeployment, chat_line, jsonl, running
from workers import lifecycle
from workers.batches import finishing
from workers.engines.port import Answer, Request

pytestmark = pytest.mark.verify

_LINES = 24
_BYTES = 1_000_000  # of an answer


class _Verbose(FakeEngine):
    """The later a line stands in the file the sooner it is answered, and at length."""

    async def answer(self, request: Request) -> Answer:
        said = request.body["messages"][0]["content"]
        await asyncio.sleep((_LINES - int(said)) * 0.005)
        return Answer(200, json.dumps({"said": said, "much": "x" * _BYTES}).encode())


def _assembling(inline: InlineDeployment, lines: int) -> str:
    """Create a batch of which all is answered in two shards, in no order, and that no process assembles."""
    inline.lose_messages = lambda task: task == Task.FINISH
    job_id = inline.submit(jsonl([chat_line(f"r{n}", str(n)) for n in range(lines)]))
    inline.until(lambda: inline.job(job_id).state in {JobState.FINISHING, *TERMINAL})
    assert inline.job(job_id).state == JobState.FINISHING
    return job_id


@pytest.mark.parametrize("held", [0, 4_000_000])
def test_oversized_results_are_read_individually_within_memory_limit(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    monkeypatch.setattr(finishing, "_HELD_BYTES", held)
    with running(db, tmp_path, _Verbose((MODEL,)), shard_lines=_LINES // 2) as inline:
        job_id = _assembling(inline, _LINES)
        tracemalloc.start()
        try:
            lifecycle.finish(inline.cpu, job_id)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        job = inline.job(job_id)
        output, errors = inline.results(job)

    assert (job.state, job.completed, job.failed, errors) == ("succeeded", _LINES, 0, [])
    assert [line["custom_id"] for line in output] == [f"r{n}" for n in range(_LINES)]
    assert [line["response"]["body"]["said"] for line in output] == [str(n) for n in range(_LINES)]
    assert peak < held + 9 * _BYTES, f"{peak / 1e6:.1f} MB"


def test_lines_that_were_not_run_stand_among_large_results(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finishing, "_HELD_BYTES", 0)
    with running(db, tmp_path, FakeEngine((MODEL,)), shard_lines=8) as inline:
        job_id = inline.submit(jsonl([chat_line(f"r{n}", "!hang" if n % 2 else "x") for n in range(8)]))
        inline.until(lambda: _stored(db, job_id) == 4)
        with db.write() as session:
            ledger.cancel(session, job_id, actor="test")
        (job,) = inline.drain(job_id)
        output, errors = inline.results(job)

    assert (job.state, job.completed, job.failed) == ("cancelled", 4, 0)
    assert [line["custom_id"] for line in output] == ["r0", "r2", "r4", "r6"]
    assert [line["custom_id"] for line in errors] == ["r1", "r3", "r5", "r7"]
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}


def _stored(db: Database, job_id: str) -> int:
    with db.read() as session:
        covered = session.scalars(select(Segment.covered).where(Segment.job_id == job_id)).all()
    return sum(int.from_bytes(bitmap, "little").bit_count() for bitmap in covered)
