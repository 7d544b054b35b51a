"""Measure what many clients and many jobs do to the API: a steady rate, a burst, long queues, long lists.

    python -m bench load [--rate 100] [--seconds 60] [--drain 120] [--answer 0] [--burst 500] [--queued 10000]
                         [--listed 1000000] [--database postgresql]

The deployment has two web processes. Jobs have one line, which a fake engine answers from memory. Requests start at
fixed times, whether or not earlier ones are answered; latencies count from these times. Afterwards, without a worker
that plans: a burst, waiting jobs, and copies of a finished job's row as history.

    intake    POST /v1/batches at the rate, while workers run the jobs; then how fast the rest drains, and the CPU of a
              job in each line of the Procfile
    burst     so many POST /v1/batches within a second
    queued    with so many waiting jobs: the cost of one claim in the ledger, and of GET /v1/jobs/{id}
    listed    with so many jobs in the table: pages of GET /v1/jobs
"""

import argparse
import asyncio
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from sqlalchemy import func, insert, select

from bench.deployment import Deployment, chats, deployed, make_folder
from jobs.db.engine import Database
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.states import TERMINAL, JobState
from jobs.ledger.tables import Job
from jobs.queues import Task
from tests.support.services import chosen_database
from tests.support.system import eventually, free_port

_WEB = {"web": "", "web2": "NIGHTMILL_PORT={port} python -m api", "dispatcher": ""}
_WORKERS = {"cpu": "", "gpu": "python -m bench.fake_worker"}
_ROWS_AT_ONCE = 5_000
_LOOKS = 300


@dataclass(slots=True)
class Answers:
    """Latencies in seconds, and statuses."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)

    def shown(self) -> str:
        told = ", ".join(f"{count} times {status}" for status, count in sorted(self.statuses.items()))
        return f"{_spread(self.seconds)}; {told}"


def main() -> None:
    options = _options()
    console = Console(width=140, highlight=False)
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as name,
        chosen_database(options.database, durable=True) as url,
    ):
        variables = {"BENCH_ANSWER_SECONDS": str(options.answer)}
        variables |= {"NIGHTMILL_DATABASE_URL": url} if url else {}
        folder = Path(name)
        with _started(folder, {**_WEB, **_WORKERS}, variables) as (inline, ports):
            inline.wait_for("cpu.plan")
            inline.wait_for("gpu.generate")
            file_id = _uploaded(inline, folder)
            with _ledger(inline, url) as db:
                _intake(console, inline, ports, file_id, db, options)
        with _started(folder, _WEB, variables) as (inline, ports), _ledger(inline, url) as db:
            _burst(console, inline, ports, file_id, options.burst)
            _queued(console, inline, ports, file_id, db, options.queued)
            if options.listed:
                _listed(console, inline, ports, db, options.listed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure intake, queues and lists")
    parser.add_argument("--rate", type=float, default=100.0, help="batches a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--drain", type=float, default=120.0, help="seconds given to the workers after that, at most")
    parser.add_argument("--answer", type=float, default=0.0, help="seconds the engine takes for each line")
    parser.add_argument("--burst", type=int, default=500, help="batches within one second")
    parser.add_argument("--queued", type=int, default=10_000, help="jobs that wait")
    parser.add_argument("--listed", type=int, default=1_000_000, help="jobs in the table; 0: leave that out")
    parser.add_argument("--database", default="", help="`postgresql` starts a durable one; default: SQLite")
    parser.add_argument("--folder", type=make_folder, help="where the data goes; default: the temporary folder")
    return parser.parse_args()


@contextmanager
def _started(
    folder: Path, lines: Mapping[str, str], variables: Mapping[str, str]
) -> Iterator[tuple[Deployment, Sequence[int]]]:
    port = free_port()
    chosen = {name: line.format(port=port) for name, line in lines.items()}
    with deployed(folder, chosen, (), {"NIGHTMILL_VLLM_ENABLED": "false", **variables}) as inline:
        eventually(lambda: _listens(port), 60, "the second web process listens")
        yield inline, (int(inline.system.url.rsplit(":", 1)[1]), port)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _ledger(inline: Deployment, url: str) -> Iterator[Database]:
    db = Database(url or f"sqlite:///{inline.system.folder.path / 'nightmill.db'}", patience=30)
    try:
        yield db
    finally:
        db.close()


def _uploaded(inline: Deployment, folder: Path) -> str:
    path = folder / "one.jsonl"
    chats(path, 1, "fake-model")
    return inline.upload(path)


# -- the parts


def _intake(
    console: Console,
    inline: Deployment,
    ports: Sequence[int],
    file_id: str,
    db: Database,
    options: argparse.Namespace,
) -> None:
    count = int(options.rate * options.seconds)
    used = inline.cpu()
    began = time.monotonic()
    answers = asyncio.run(_crowd(inline, ports, _posts(file_id, count), options.rate))
    took = time.monotonic() - began
    done = before = _ended(db)
    console.print(f"intake   {count / took:.0f} POST/s for {took:.0f} s: {answers.shown()}")
    began = time.monotonic()
    while done < answers.statuses[200] and time.monotonic() < began + options.drain:
        threading.Event().wait(0.5)
        done = _ended(db)
    rate = (done - before) / (time.monotonic() - began)
    left = answers.statuses[200] - done
    console.print(f"         {before / took:.0f} jobs/s ended meanwhile, {rate:.0f}/s afterwards; {left:,} are left")
    spent = ", ".join(f"{name} {1000 * (now - used[name]) / max(1, done):.1f}" for name, now in inline.cpu().items())
    console.print(f"         CPU, in ms for each job that ended: {spent}")


def _burst(console: Console, inline: Deployment, ports: Sequence[int], file_id: str, count: int) -> None:
    began = time.monotonic()
    answers = asyncio.run(_crowd(inline, ports, _posts(file_id, count), float(count)))
    console.print(f"burst    {count} POST within 1 s: {answers.shown()}; over after {time.monotonic() - began:.1f} s")


def _queued(console: Console, inline: Deployment, ports: Sequence[int], file_id: str, db: Database, count: int) -> None:
    with db.read() as session:
        waiting = session.scalar(select(func.count()).where(Job.state == JobState.QUEUED)) or 0
    made = asyncio.run(_crowd(inline, ports, _posts(file_id, max(0, count - waiting)), 150.0))
    with db.read() as session:
        ids = session.scalars(select(Job.id).where(Job.state == JobState.QUEUED).limit(_LOOKS)).all()
    seconds = []
    for job_id in ids:
        began = time.perf_counter()
        with db.write() as session:
            assert ledger.claim(session, job_id, Task.PLAN, "bench") is not None
        seconds.append(time.perf_counter() - began)
    looks = asyncio.run(_crowd(inline, ports, [("GET", f"/v1/jobs/{job_id}", None) for job_id in ids], 50.0))
    more = f", {len(made.ids):,} of them made now: {made.shown()}" if made.ids else ""
    console.print(f"queued   {max(count, waiting):,} jobs wait{more}")
    console.print(f"         a claim {_spread(seconds)}; GET /v1/jobs/{{id}} {looks.shown()}")


def _listed(console: Console, inline: Deployment, ports: Sequence[int], db: Database, count: int) -> None:
    copy_history(db, count)
    first = [("GET", "/v1/jobs?limit=100", None)] * 100
    failed = [("GET", "/v1/jobs?limit=100&state=failed", None)] * 100
    with db.read() as session:
        deep = session.scalars(select(Job.id).order_by(Job.created_at).offset(count // 2).limit(1)).one()
    pages = {
        "first page": first,
        "a page in the middle": [("GET", f"/v1/jobs?limit=100&after={deep}", None)] * 100,
        "a state that is rare": failed,
        "batches": [("GET", "/v1/batches?limit=100", None)] * 100,
    }
    for what, requests in pages.items():
        console.print(f"listed   of {count:,}, {what}: {asyncio.run(_crowd(inline, ports, requests, 10.0)).shown()}")


def copy_history(db: Database, count: int) -> None:
    """Insert copies of a finished job's row, each one second before the last."""
    with db.read() as session:
        job = session.scalars(select(Job).where(Job.state == JobState.SUCCEEDED).limit(1)).one()
        there = session.scalar(select(func.count()).select_from(Job)) or 0
    columns = columns_of(job)
    insert_many(
        db,
        Job,
        ({**columns, "id": new_id("batch"), "created_at": columns["created_at"] - n} for n in range(there, count)),
    )


def columns_of(row: Any) -> dict[str, Any]:
    """Return the values of a row by the names that `insert` takes."""
    return {column.key: getattr(row, column.key) for column in type(row).__mapper__.column_attrs}


def insert_many(db: Database, table: Any, rows: Iterable[dict[str, Any]]) -> None:
    """Insert rows without limit, so many in a transaction that it stays short."""
    left = iter(rows)
    while some := list(islice(left, _ROWS_AT_ONCE)):
        with db.write() as session:
            session.execute(insert(table), some)


# -- requests


def _posts(file_id: str, count: int) -> list[tuple[str, str, Any]]:
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return [("POST", "/v1/batches", body)] * count


async def _crowd(
    inline: Deployment, ports: Sequence[int], requests: Sequence[tuple[str, str, Any]], rate: float
) -> Answers:
    """Send each request at its time, to the web processes in turn."""
    answers = Answers()
    headers = {"Authorization": f"Bearer {inline.system.api_key}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(headers=headers, connector=connector) as client,
        asyncio.TaskGroup() as group,
    ):
        began = time.monotonic() + 0.1
        for n, (method, path, body) in enumerate(requests):
            due = began + n / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            url = f"http://127.0.0.1:{ports[n % len(ports)]}{path}"
            group.create_task(_ask(client, method, url, body, due, answers))
    return answers


async def _ask(client: aiohttp.ClientSession, method: str, url: str, body: Any, due: float, answers: Answers) -> None:
    async with client.request(method, url, json=body) as answer:
        told = await answer.json()
        answers.seconds.append(time.monotonic() - due)
        answers.statuses[answer.status] += 1
        if answer.status == 200 and "id" in told:
            answers.ids.append(told["id"])


def _ended(db: Database) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).where(Job.state.in_(TERMINAL))) or 0


def _spread(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    return f"p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, worst {ordered[-1] * 1000:.0f} ms"


if __name__ == "__main__":
    main()
