"""Fault F10: the disk is full during uploads, while results are written down, and while they are assembled.

A whole deployment lies on a small disk of its own, with everything that is embedded: database, files, logs, and the
broker's append-only file. A filler takes what is left of the disk, and whatever is freed meanwhile, for a few leases.
"""

import io
import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import openai
import pytest
import redis
from openai import OpenAI
from openai.types import Batch

from cli.up.broker import socket_path
from jobs.ledger.slot_weights import SLOTS
from jobs.queues import Queue
from tests.support import oracle
from tests.support.oracle import Job
from tests.support.receiver import Receiver
from tests.support.services import need
from tests.support.stub_engine import prompts
from tests.support.system import LOG_LINE, MODEL, SCALED, StubEngine, System, eventually, pause
from workers.engines.caps import MAX_CHOICES

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]  # the first test of each deployment waits for its start
MB = 1 << 20
PAGE = 4096
LEASE = float(SCALED["NIGHTMILL_LEASE_SECONDS"])
#: What may be asked again when both shards in flight can't store their answers.
LOST_AT_ONCE = SLOTS * int(SCALED["NIGHTMILL_SHARD_LINES"])
#: A shard or a finisher that could not store something waits ten seconds; then there is work to do, on a slow machine.
RECOVERY = 60.0
MIN_FREE = 32 * MB
#: Of one process that meets a full disk: each kind of warning once in ten seconds, and what it says when it comes back.
MOST_LINES = 10
#: The broker's refusals are told by Celery and kombu.
_OF_BROKER = ("valkey.sock", "MISCONF", "celery.worker.consumer", "server:ResponseError")


class Wide(Job):
    """A batch whose answers are large: as many choices as may be asked for, seventeen kilobytes a line."""

    def body(self, custom_id: str) -> oracle.Line:
        return {**super().body(custom_id), "n": MAX_CHOICES}


class Disk:
    """A file system of its own in memory."""

    def __init__(self, folder: Path, size: int = 64 * MB) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "nightmill-test", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PermissionError(done.stderr.strip())
        except OSError as error:
            need("a disk of its own", error)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    @property
    def free(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    @contextmanager
    def filled(self, leave: int = 0) -> Iterator["Filler"]:
        """Only so much is free, whatever others write and remove; all of it again at the end."""
        filler = Filler(self, leave)
        try:
            yield filler
        finally:
            filler.remove()


class Filler:
    """A file that takes what is free, but for `leave` bytes."""

    def __init__(self, disk: Disk, leave: int) -> None:
        self.leave = leave
        self._disk = disk
        self._path = disk.folder / "filler"
        self._file = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self._stop = threading.Event()
        self._grow()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def remove(self) -> None:
        self._stop.set()
        self._thread.join(30)
        os.close(self._file)
        self._path.unlink()

    def _keep(self) -> None:
        while not self._stop.wait(0.005):
            self._grow()

    def _grow(self) -> None:
        size = MB
        while size >= PAGE and not self._stop.is_set():
            wanted = min(size, self._disk.free - self.leave)
            try:
                if wanted < PAGE:
                    return
                os.write(self._file, bytes(wanted))
            except OSError:
                size //= 2


class Halfway(io.BytesIO):
    """A file in the middle of whose reading something happens."""

    def __init__(self, data: bytes, then: Callable[[], object]) -> None:
        super().__init__(data)
        self._half = len(data) // 2
        self._then: Callable[[], object] | None = then

    def read(self, size: int | None = -1, /) -> bytes:
        if self._then is not None and self.tell() >= self._half:
            then, self._then = self._then, None
            then()
        return super().read(size)


@dataclass(slots=True)
class Scene:
    """A deployment, its disk, its engine, and a client who asks once."""

    disk: Disk
    engine: StubEngine
    system: System
    sdk: OpenAI

    @property
    def storage(self) -> Path:
        return self.system.data / "files"

    def submit(self, key: str, count: int, kind: type[Job] = Job) -> Job:
        job = kind(key, "/v1/chat/completions", MODEL, {f"{key}-{n}": f"{key}: question {n}" for n in range(count)})
        file = self.sdk.files.create(file=(f"{key}.jsonl", job.jsonl()), purpose="batch")
        made = self.sdk.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"key": key},
        )
        job.batch_id = made.id
        return job

    def batch(self, job: Job) -> Batch:
        return self.sdk.batches.retrieve(job.batch_id)

    def completed(self, job: Job) -> int:
        counts = self.batch(job).request_counts
        return counts.completed if counts else 0

    def goes_on(self, job: Job, since: int) -> bool:
        return self.completed(job) > since

    def waits_for(self, job: Job) -> str | None:
        shown = self.sdk.get(f"/jobs/{job.batch_id}", cast_to=object)
        assert isinstance(shown, dict)
        return shown["waiting_for"]  # type: ignore[no-any-return]

    def await_end(self, *jobs: Job) -> None:
        eventually(lambda: all(self.batch(job).status in oracle.TERMINAL for job in jobs), RECOVERY, "they end", 0.2)

    def partials(self) -> list[Path]:
        return list(self.storage.rglob(".partial-*"))

    def operate(self, verb: str, queue: Queue) -> None:
        done = self.system.cli(verb, "queue", queue)
        assert done.returncode == 0, done.stderr

    def broker_refuses(self) -> bool:
        """Whether its file cannot grow: it takes one command more before it notices."""
        with redis.Redis(unix_socket_path=str(socket_path(self.system.data))) as broker:
            try:
                broker.set("filler", bytes(2 * PAGE))
            except redis.ResponseError as error:
                return "MISCONF" in str(error)
        return False

    def asked(self, job: Job) -> list[str]:
        return [prompt for prompt in prompts(self.engine.log) if prompt.startswith(f"{job.key}:")]

    def logged(self) -> dict[str, int]:
        """Lines so far, by process."""
        return {path.stem: len(path.read_bytes().splitlines()) for path in (self.system.data / "logs").glob("*.log")}

    def faults(self, *jobs: Job) -> list[str]:
        """Return what is wrong with these batches, and with the content of the storage."""
        found = []
        for job in jobs:
            result = oracle.fetch(self.sdk, job.batch_id)
            for check in (oracle.ended, oracle.complete, oracle.counted):
                found += check(job, result)
            found += oracle.transitions(self.sdk, job)
        for file in self.sdk.files.list():
            if (self.storage / "files" / file.id).stat().st_size != file.bytes:
                found.append(f"{file.id} is not whole")
        return found + [f"{path} was left" for path in self.partials()]

    def wrong(self) -> list[str]:
        """Return what is wrong with the database, the audit log and the processes."""
        with closing(sqlite3.connect(self.system.data / "nightmill.db")) as database:
            found = [row for (row,) in database.execute("PRAGMA integrity_check") if row != "ok"]
        verdict = self.system.cli("audit", "verify")
        if verdict.returncode:
            found.append(verdict.stdout + verdict.stderr)
        found += [f"{name} was started again" for name, one in self.system.table().items() if one["restarts"]]
        errors = [line for lines in self.system.errors().values() for line in lines]
        return found + [line for line in errors if not any(word in line for word in _OF_BROKER) and not _cut(line)]


def _cut(line: str) -> bool:
    """Whether the full disk took the end of a log's line, and with it what the error was about."""
    return line.startswith("{") and len(line) < LOG_LINE and not line.endswith("}")


@contextmanager
def deployed(folder: Path, *, logs_apart: bool = False, **environment: str) -> Iterator[Scene]:
    """Yield a deployment whose data folder is a disk; with `logs_apart` the logs have another disk."""
    with ExitStack() as stack:
        disk = Disk(folder / "data")
        stack.callback(disk.unmount)
        if logs_apart:
            stack.callback(Disk(disk.folder / "logs").unmount)
        engine = stack.enter_context(StubEngine(folder, MODEL, delay_ms=250))
        system = System(folder, engine_url=engine.url, embed_url=engine.url, rivals=False, **environment)
        stack.callback(system.destroy)
        system.start()
        sdk = OpenAI(base_url=f"{system.url}/v1", api_key=system.api_key, max_retries=0, timeout=20)
        stack.callback(sdk.close)
        yield Scene(disk, engine, system, sdk)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with deployed(tmp_path_factory.mktemp("full")) as made:
        yield made


def refused(request: Callable[[], object]) -> int:
    """Return the status of an error in OpenAI's shape."""
    with pytest.raises(openai.APIStatusError) as caught:
        request()
    error = caught.value.response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] in {"insufficient_storage", "database_unavailable"}
    assert "retry-after" in caught.value.response.headers
    return caught.value.status_code


def test_an_upload_that_fills_the_disk_is_refused_and_leaves_nothing(scene: Scene) -> None:
    data, sdk = bytes(16 * MB), scene.sdk
    patient = sdk.with_options(max_retries=10)  # the key is free when its lease is over
    key = {"Idempotency-Key": "once"}
    parts = sdk.uploads.create(bytes=len(data), filename="in.jsonl", mime_type="text/plain", purpose="batch")
    uploads: list[Callable[[OpenAI, io.BytesIO], object]] = [
        lambda by, file: by.files.create(file=("plain", file), purpose="user_data"),
        lambda by, file: by.files.create(file=("keyed", file), purpose="user_data", extra_headers=key),
        lambda by, file: by.uploads.parts.create(parts.id, data=("part", file)),
    ]
    for upload in uploads:
        before = [file.id for file in sdk.files.list()]
        with ExitStack() as full:

            def fill(full: ExitStack = full) -> None:
                eventually(scene.partials, 10, "the upload is being written")
                full.enter_context(scene.disk.filled())

            file = Halfway(data, fill)
            assert refused(partial(upload, sdk, file)) == 507
            eventually(lambda: not scene.partials(), 5, "nothing is left of it")
            assert [file.id for file in sdk.files.list()] == before
            eventually(lambda: scene.disk.free < MB // 4, 10, "the disk is full again")
            assert refused(lambda: sdk.files.create(file=("more", bytes(MB)), purpose="user_data")) == 507
            assert refused(lambda: sdk.uploads.cancel(parts.id)) in (503, 507)
        assert upload(patient, io.BytesIO(data))
        assert scene.faults() == []
        for made in sdk.files.list():
            sdk.files.delete(made.id)
        for path in scene.storage.rglob("*"):
            if path.is_file():
                path.unlink()  # retention would, within a minute


def test_shards_wait_while_the_disk_is_full_and_go_on_after_it(scene: Scene) -> None:
    job = scene.submit("steps", 480)
    for leases in (2, 1, 1):
        eventually(partial(scene.goes_on, job, scene.completed(job)), RECOVERY, "lines are answered")
        with scene.disk.filled():
            eventually(scene.broker_refuses, 15, "the broker's file can't grow")
            halted = scene.completed(job)
            pause(leases * LEASE)
            assert scene.completed(job) == halted
            assert scene.batch(job).status == "in_progress"
            assert refused(lambda: scene.sdk.files.create(file=("more", bytes(MB)), purpose="user_data")) == 507
    scene.await_end(job)

    assert scene.faults(job) == []
    assert oracle.rework(scene.asked(job)) <= 3 * LOST_AT_ONCE


def test_results_are_assembled_after_space_is_freed(scene: Scene) -> None:
    """None are assembled while the queue is paused; then there is room for a part of each, and soon for nothing."""
    scene.operate("pause", Queue.GENERATE)
    jobs = [scene.submit(f"wide{n}", 140, Wide) for n in range(3)]
    eventually(lambda: all(scene.batch(job).status == "in_progress" for job in jobs), 30, "they are planned")
    scene.operate("pause", Queue.PLAN)
    scene.operate("resume", Queue.GENERATE)
    eventually(lambda: all(scene.batch(job).status == "finalizing" for job in jobs), RECOVERY, "all lines are answered")
    with scene.disk.filled(leave=MB) as filler:
        scene.operate("resume", Queue.PLAN)
        eventually(lambda: set(map(scene.waits_for, jobs)) == {"waiting_for_disk"}, 30, "none finds room for its own")
        filler.leave = 0
        pause(2 * LEASE)
        assert [scene.batch(job).status for job in jobs] == ["finalizing"] * 3
        assert [scene.batch(job).output_file_id for job in jobs] == [None] * 3
    scene.await_end(*jobs)

    assert scene.faults(*jobs) == []
    assert [oracle.rework(scene.asked(job)) for job in jobs] == [0] * 3


def test_database_audit_log_and_processes_are_sound_afterwards(scene: Scene) -> None:
    assert scene.wrong() == []


def test_with_a_reserve_uploads_are_refused_and_jobs_wait_before_the_disk_is_full(tmp_path: Path) -> None:
    reserve = {"NIGHTMILL_MIN_FREE_BYTES": str(MIN_FREE), "NIGHTMILL_ACCESS_LOG": "false"}
    with deployed(tmp_path, logs_apart=True, **reserve) as scene, Receiver() as receiver:
        scene.sdk.webhooks.create(name="slow", url=receiver.url("hang"), event_types=["batch.completed"])
        job = scene.submit("reserve", 1500)
        eventually(lambda: scene.completed(job), 30, "the job runs")
        with scene.disk.filled(leave=MIN_FREE - 4 * MB):
            assert refused(lambda: scene.sdk.files.create(file=("one", b"{}"), purpose="user_data")) == 507
            eventually(lambda: scene.waits_for(job) == "waiting_for_disk", 30, "the job waits for room, and says so")
            assert 0 < scene.completed(job) < 1500
            assert scene.disk.free > MIN_FREE // 2
        scene.await_end(job)
        assert oracle.rework(scene.asked(job)) == 0

        before = scene.logged()
        with scene.disk.filled():
            eventually(scene.broker_refuses, 15, "the broker's file can't grow")
            pause(LEASE)
        told = {name: count - before.get(name, 0) for name, count in scene.logged().items()}

        assert scene.faults(job) == []
        assert scene.wrong() == []
    assert sum(told.values()) > 0
    assert {name: count for name, count in told.items() if count > MOST_LINES} == {}


def test_a_disk_that_cannot_be_mounted_is_missed_where_nothing_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(pytest.fail.Exception, match=r"a disk of its own can't be started"):
        Disk(tmp_path / "disk")
