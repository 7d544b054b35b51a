"""Measure webhook delivery on this machine: how many a second, and how soon after the event.

    python -m bench webhooks [--database URL] [--events 5000] [--endpoints 20] [--rate 100] [--seconds 20] [--jobs 500]

Three figures. Backlog: many events for some endpoints, until the last delivery is recorded. Paced: events at a steady
rate, each for one endpoint, and the time from the event's row to the arrival of the request. In these two the delivery
loop runs in this process, and the receiver in another. Jobs: a deployment with all processes, batches of one line that
a fake engine answers, and the time from the end of a batch to the arrival of its event.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from sqlalchemy import func, select

import jobs.known_kinds  # noqa: F401 (fills the table that an event's fan-out looks at)
from bench.deployment import chats, deployed
from jobs.clock import now
from jobs.db.engine import Database
from jobs.ledger import events
from jobs.ledger.tables import Job
from jobs.settings import Settings
from jobs.tables import Base
from jobs.timings import Timings
from jobs.webhooks.sending import new_secret
from jobs.webhooks.tables import Delivery, Event, WebhookEndpoint
from workers.webhooks import loop

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_AT_ONCE = 50  # events in a transaction
_LINES = {"web": "", "dispatcher": "", "cpu": "", "gpu": "python -m bench.fake_worker", "io": ""}


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder, _receiver() as (pipe, port):
        db = Database(options.database or f"sqlite:///{Path(folder) / 'bench.db'}", patience=10)
        Base.metadata.create_all(db.engine)
        names = [f"we_{n}" for n in range(options.endpoints)]
        _endpoints(db, names, port)
        print(f"database   {db.engine.url.get_backend_name()}, {options.endpoints} endpoints")
        _backlog(db, names, options.events)
        with _delivering(db):
            _flat_out(db, options.events)
            _arrivals(pipe)
            _paced(db, names, options.rate, options.seconds, pipe)
        db.close()
        if options.jobs:
            _of_jobs(Path(folder), port, pipe, options.jobs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure webhook delivery")
    parser.add_argument(
        "--database", default="", help="SQLAlchemy URL of an empty database; default: a new SQLite file"
    )
    parser.add_argument("--events", type=int, default=5000)
    parser.add_argument("--endpoints", type=int, default=20)
    parser.add_argument("--rate", type=float, default=100.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--jobs", type=int, default=500, help="batches of one line in a whole deployment")
    return parser.parse_args()


def _backlog(db: Database, names: list[str], count: int) -> None:
    for start in range(0, count, _AT_ONCE):
        _happen(db, names, range(start, min(start + _AT_ONCE, count)))


def _flat_out(db: Database, count: int) -> None:
    began, cpu = time.monotonic(), time.process_time()
    _wait_for(db, count)
    took = time.monotonic() - began
    print(f"flat out   {count / took:7.0f} deliveries/s  ({(time.process_time() - cpu) / count * 1e6:.0f} µs CPU each)")


def _paced(db: Database, names: list[str], rate: float, seconds: float, pipe: Connection) -> None:
    count = int(rate * seconds)
    began, cpu, pause = time.monotonic(), time.process_time(), threading.Event()
    happened: dict[str, float] = {}
    for n in range(count):
        pause.wait(max(0.0, began + n / rate - time.monotonic()))
        happened.update(_happen(db, names, range(10_000_000 + n, 10_000_001 + n)))
    used = (time.process_time() - cpu) / (time.monotonic() - began)
    threading.Event().wait(1.0)
    arrived = _arrivals(pipe)
    waits = sorted(arrived[key] - at for key, at in happened.items() if key in arrived)
    print(
        f"paced      {rate:.0f} events/s for {seconds:.0f} s: {len(waits)} of {count} arrived,"
        f" p50 {statistics.median(waits) * 1000:.0f} ms, p95 {waits[int(len(waits) * 0.95)] * 1000:.0f} ms,"
        f" worst {waits[-1] * 1000:.0f} ms, {used:.0%} of a core"
    )


def _of_jobs(folder: Path, port: int, pipe: Connection, count: int) -> None:
    variables = {"NIGHTMILL_VLLM_ENABLED": "false", "NIGHTMILL_WEBHOOK_ALLOW_PRIVATE": "true"}
    with deployed(folder / "jobs", _LINES, (), variables) as inline:
        inline.wait_for("cpu.plan")
        inline.wait_for("gpu.generate")
        url = f"http://127.0.0.1:{port}/jobs"
        inline.client.webhooks.create(name="bench", url=url, event_types=["batch.completed"])
        chats(folder / "one.jsonl", 1, "fake-model")
        file_id = inline.upload(folder / "one.jsonl")
        for _ in range(count):
            inline.client.batches.create(
                input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        db = Database(f"sqlite:///{inline.system.folder.path / 'nightmill.db'}", patience=30)
        _wait_for(db, count)
        arrived = _arrivals(pipe)
        with db.read() as session:
            ends = session.execute(select(Event.id, Job.completed_at).join(Job, Job.id == Event.subject_id)).all()
        db.close()
    waits = sorted(arrived[event] - at for event, at in ends if at is not None and event in arrived)
    ended = sorted(at for _, at in ends if at is not None)
    print(
        f"jobs       {len(waits)} of {count} told of, {count / (ended[-1] - ended[0]):.0f} batches/s ended:"
        f" p50 {statistics.median(waits) * 1000:.0f} ms, p95 {waits[int(len(waits) * 0.95)] * 1000:.0f} ms,"
        f" worst {waits[-1] * 1000:.0f} ms"
    )


def _endpoints(db: Database, names: list[str], port: int) -> None:
    with db.write() as session:
        for name in names:
            session.add(
                WebhookEndpoint(
                    id=name,
                    project_id=f"proj_{name}",
                    name=name,
                    url=f"http://127.0.0.1:{port}/{name}",
                    event_types=["batch.completed"],
                    secret=new_secret(),
                    created_at=now(),
                )
            )


def _happen(db: Database, names: list[str], numbers: range) -> dict[str, float]:
    """Insert one event for each number, for one endpoint; return event id → time."""
    made = {}
    with db.write() as session:
        for n in numbers:
            event = events.record(
                session,
                subject_id=f"batch_{n}",
                seq=1,
                project_id=f"proj_{names[n % len(names)]}",
                type="batch.completed",
                data={"id": f"batch_{n}"},
            )
            session.flush()
            events.fan_out(session, event)
            made[event.id] = time.time()
    db.breathe()
    return made


def _wait_for(db: Database, count: int) -> None:
    pause = threading.Event()
    while True:
        with db.read() as session:
            if session.scalar(select(func.count()).where(Delivery.state == "delivered")) == count:
                return
        pause.wait(0.05)


@contextmanager
def _delivering(db: Database) -> Iterator[None]:
    stop = threading.Event()
    config = Settings(webhook_allow_private=True)
    timings = replace(Timings(), deliveries_idle=600.0)
    thread = threading.Thread(target=loop.run, args=(db, config, "bench", stop, timings))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _receiver() -> Iterator[tuple[Connection, int]]:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_receive, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours, ours.recv()
    finally:
        process.kill()
        process.join()


def _arrivals(pipe: Connection) -> dict[str, float]:
    """Return event id → arrival of its first request, since the last call."""
    pipe.send("arrivals")
    return dict(pipe.recv())


def _receive(pipe: Connection) -> None:
    asyncio.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    arrived: dict[str, float] = {}
    running = asyncio.get_running_loop()
    server = await running.create_server(lambda: _Sink(arrived), "127.0.0.1", 0, backlog=512)
    pipe.send(server.sockets[0].getsockname()[1])
    running.add_reader(pipe.fileno(), _hand_over, pipe, arrived)
    await server.serve_forever()


def _hand_over(pipe: Connection, arrived: dict[str, float]) -> None:
    pipe.recv()
    pipe.send(list(arrived.items()))
    arrived.clear()


class _Sink(asyncio.Protocol):
    """A server that answers 200 to every request, and reads only the id of the event."""

    def __init__(self, arrived: dict[str, float]) -> None:
        self._arrived = arrived
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._buffer.endswith(b"}}"):
            start = self._buffer.index(b'{"id":"') + 7
            self._arrived.setdefault(self._buffer[start : start + 28].decode(), time.time())
            self._buffer = b""
            self._transport.write(_ANSWER)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
