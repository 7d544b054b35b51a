"""Do by hand, through the ledger, what workers do to a job: for tests of what the API shows."""

import json
from collections.abc import Mapping, Sequence

from jobs.clock import now
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.ids import new_id
from jobs.ledger import ledger, shards
from jobs.ledger.ledger import JobClaim
from jobs.ledger.shards import ShardClaim, Tally
from jobs.ledger.states import JobState
from jobs.ledger.tables import Shard
from jobs.platform.storage import Storage
from jobs.queues import Queue, Task

WORKER = "worker-by-hand"


def plan(db: Database, job_id: str, lines: int, model: str = "m") -> None:
    """Queued → running, with one shard of `lines` lines."""
    with db.write() as session:
        claim = _claimed(ledger.claim(session, job_id, Task.PLAN, WORKER))
        shards.cut(
            session,
            claim,
            Queue.GENERATE,
            [Shard(job_id=job_id, n=0, first_line=0, lines=lines, offset=0, length=lines)],
        )
        ledger.begin_running(session, claim, total=lines, model=model, queue=Queue.GENERATE)


def fail(db: Database, job_id: str, errors: list[dict[str, object]]) -> None:
    """Queued → failed."""
    with db.write() as session:
        ledger.reject(session, _claimed(ledger.claim(session, job_id, Task.PLAN, WORKER)), errors)


def take(db: Database, job_id: str) -> ShardClaim:
    """Claim the shard."""
    with db.write() as session:
        claim = shards.claim(session, job_id, 0, WORKER)
        assert claim is not None
        return claim


def answer(
    db: Database,
    storage: Storage,
    claim: ShardClaim,
    lines: Sequence[int],
    *,
    seq: int = 0,
    last: bool = False,
    cut_off: int = 0,
) -> None:
    """Commit one segment with these lines answered well, 3 tokens in and 2 out each; the first `cut_off` too early."""
    records = b"".join(b"%d\t1\t%s\n" % (line, output_line(line)) for line in lines)
    path = shards.segment_path(claim.job.id, claim.n, claim.epoch, seq)
    storage.put(path, records)
    bits = sum(1 << line for line in lines)
    tally = Tally(
        covered=bits,
        good=bits,
        cut_off=sum(1 << line for line in lines[:cut_off]),
        input_tokens=3 * len(lines),
        output_tokens=2 * len(lines),
        outcomes=_reasons(len(lines), cut_off),
    )
    with db.write() as session:
        shards.commit(session, claim, seq, path, len(records), tally, last=last)
        if last:
            ledger.advance_job(session, claim.job.id, actor=f"worker:{WORKER}")


def _reasons(lines: int, cut_off: int) -> dict[str, int]:
    return {"stop": lines - cut_off} | ({"length": cut_off} if cut_off else {})


def finish(db: Database, storage: Storage, job_id: str, lines: Sequence[int], failed: int = 0, cut_off: int = 0) -> str:
    """Finishing, expiring or cancelling → its end, with an output file; returns that file's id."""
    with db.write() as session:
        claim = _claimed(ledger.claim(session, job_id, Task.FINISH, WORKER))
    text = b"".join(output_line(line) + b"\n" for line in lines)
    file = _stored(storage, claim.job.project_id, "output", text)
    values = {
        "completed": len(lines),
        "failed": failed,
        "input_tokens": 3 * len(lines),
        "output_tokens": 2 * len(lines),
        "output_file_id": file.id,
    }
    with db.write() as session:
        outcomes = _reasons(len(lines), cut_off) | ({"error:engine_error": failed} if failed else {})
        ledger.close(session, claim, values, [file], outcomes)
    return file.id


def end(
    db: Database,
    storage: Storage,
    job_id: str,
    answers: Sequence[bytes],
    errors: Sequence[bytes] = (),
    outcomes: Mapping[str, int] | None = None,
) -> None:
    """Run the whole life of a job that succeeds, with these lines in its output file and its error file."""
    lines = len(answers) + len(errors)
    plan(db, job_id, lines)
    answer(db, storage, take(db, job_id), range(lines), last=True)
    with db.write() as session:
        claim = _claimed(ledger.claim(session, job_id, Task.FINISH, WORKER))
    files = {
        name: _stored(storage, claim.job.project_id, name, b"".join(line + b"\n" for line in texts))
        for name, texts in (("output_file_id", answers), ("error_file_id", errors))
        if texts
    }
    values = {"completed": len(answers), "failed": len(errors)} | {name: file.id for name, file in files.items()}
    with db.write() as session:
        ledger.close(session, claim, values, list(files.values()), dict(outcomes or {}))


def _stored(storage: Storage, project_id: str, name: str, text: bytes) -> File:
    file = File(
        id=new_id("file-"),
        project_id=project_id,
        purpose="batch_output",
        filename=f"{name}.jsonl",
        bytes=len(text),
        path=f"files/{new_id('out')}",
        created_at=now(),
    )
    storage.put(file.path, text)
    return file


def run(db: Database, storage: Storage, job_id: str, lines: int, failed: int = 0, cut_off: int = 0) -> str:
    """Run the whole life of a job that succeeds."""
    plan(db, job_id, lines)
    answer(db, storage, take(db, job_id), range(lines), last=True, cut_off=cut_off)
    return finish(db, storage, job_id, range(lines - failed), failed, cut_off)


def expire(db: Database, job_id: str) -> None:
    """Move a job from running to expiring, whatever the deadline."""
    with db.write() as session:
        ledger.move(session, job_id, {JobState.QUEUED, JobState.RUNNING}, JobState.EXPIRING, actor="dispatcher")
        ledger.advance_job(session, job_id, actor="dispatcher")


def output_line(line: int) -> bytes:
    response = {"status_code": 200, "request_id": f"req_{line}", "body": {}}
    return json.dumps(
        {"id": f"batch_req_{line}", "custom_id": f"c{line}", "response": response, "error": None}
    ).encode()


def _claimed(claim: JobClaim | None) -> JobClaim:
    assert claim is not None
    return claim
