"""The faults of a deployment. Each fault is a function of the `Scene`; `FAULTS` is the table of them.

    id   fault                                   what must hold
    F1   kill -9 of a worker, with its children   its claims are revoked, uncovered lines run again
    F3   SIGTERM, and a new one in its place      it commits what it has, releases the rest
    F4   freeze for up to two leases, then thaw   the zombie's writes are fenced
    F5   freeze an idle worker, submit, kill -9   the message it swallowed is published again
    F6   the broker forgets everything            every message is published again
    F7   the broker dies and remembers, or hangs  no job is affected
    F8   the broker takes no more messages        they wait in the outbox
    F9   the database takes no writes, or dies   a worker that cannot send heartbeats is not dead
    S3   the storage dies, or hangs               work is released and goes on
    F19  the vector database dies, or hangs       the same
    F11  kill -9 of web as a create arrives       the same key again: one job
    F12  messages of all jobs, ten times each    the second claim finds nothing
    F16  kill -9 of the sender of webhooks        each event is delivered
    F20  kill -9 of a trainer, its worker, or an engine with adapters     trained on from the last checkpoint
    F17  the clock jumps, and is set right        nothing ends early, nothing is lost

`rework` is how many engine workers lose what they have in flight, which may be asked again.
"""

import fcntl
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import openai
import psutil
import redis

from cli.up.broker import socket_path
from jobs.queues import Queue, Task
from jobs.settings import Settings
from tests.chaos.journal import Journal
from tests.chaos.load import Load
from tests.support.distributed import Killable, Servers
from tests.support.oracle import Job
from tests.support.system import SCALED, StubEngine, System, command, pause, rival, signal_all, wait_for
from tests.support.weaviate import Weaviate
from workers.dispatcher.publisher import BrokerUnavailable, CeleryPublisher

_WEB_DELAY = 0.05  # F11: the kill comes this long after the request, at most
_GONE_SECONDS = 5.0  # after a kill of `up`, nothing of it may live longer
_END_SECONDS = 45.0  # F3: from SIGTERM to the end; answers in progress have 20
_REPEATS = 10
WEAVIATE = "Weaviate"
_START_SECONDS = 15.0  # F5: a job whose message was swallowed starts elsewhere within this time


@dataclass(slots=True)
class Scene:
    """The place where a fault strikes, and its findings."""

    system: System
    load: Load
    engine: StubEngine | None
    journal: Journal
    rng: random.Random
    servers: Servers | None = None
    weaviate: Weaviate | None = None
    spared: frozenset[str] = frozenset()
    patience: float = 1.0
    recovered: dict[str, list[float]] = field(default_factory=dict)

    @property
    def broker_url(self) -> str:
        """Empty: the one on the socket in the data folder."""
        return self.servers.rabbit.url if self.servers else ""

    @property
    def lease(self) -> float:
        return float(SCALED["NIGHTMILL_LEASE_SECONDS"]) * self.patience

    def server(self, name: str) -> Killable:
        if name == WEAVIATE:
            assert self.weaviate is not None
            return self.weaviate
        assert self.servers is not None
        return self.servers.named[name]

    def recovery(self, name: str, seconds: float) -> None:
        self.recovered.setdefault(name, []).append(seconds)


@dataclass(frozen=True, slots=True)
class Fault:
    """`weight` is its share among others, `kills` whether a process dies of it."""

    strike: Callable[[Scene], None]
    family: str
    weight: int
    rework: int = 0
    kills: bool = True


def _one(scene: Scene, name: str) -> str:
    """Return one of two rivals that is not spared."""
    both = [name, rival(name)] if rival(name) in scene.system.table() else [name]
    return scene.rng.choice([one for one in both if one not in scene.spared] or both)


def _kill(name: str) -> Callable[[Scene], None]:
    def strike(scene: Scene) -> None:
        processes = scene.system.tree(_one(scene, name))
        signal_all(processes[::-1] if scene.rng.random() < 0.5 else processes, signal.SIGKILL)

    return strike


def _kill_main(name: str) -> Callable[[Scene], None]:
    """Only the process that the supervisor knows; its children are the supervisor's to find."""

    def strike(scene: Scene) -> None:
        signal_all(scene.system.tree(_one(scene, name))[:1], signal.SIGKILL)

    return strike


def _kill_child(name: str) -> Callable[[Scene], None]:
    def strike(scene: Scene) -> None:
        children = scene.system.tree(name)[1:]
        signal_all([scene.rng.choice(children)] if children else [], signal.SIGKILL)

    return strike


def _kill_trainer(scene: Scene) -> None:
    """Kill a trainer, its worker's only child, which is a moment old, or at work."""
    wait_for(lambda: scene.system.tree("finetune")[1:], 60 * scene.patience, "a trainer runs")
    pause(scene.rng.uniform(0, 2))
    signal_all(scene.system.tree("finetune")[1:], signal.SIGKILL)


def _freeze(name: str, shortest: float = 1.1, longest: float = 2.2) -> Callable[[Scene], None]:
    """Return a fault that freezes a process for a time in leases, by default so long that others take its claims."""

    def strike(scene: Scene) -> None:
        with scene.system.frozen(_one(scene, name)):
            pause(scene.lease * scene.rng.uniform(shortest, longest))

    return strike


def _outage(name: str) -> Callable[[Scene], None]:
    """Kill a shared server with SIGKILL; it comes back by itself on the same port."""

    def strike(scene: Scene) -> None:
        server = scene.server(name)
        server.kill()
        pause(scene.rng.uniform(0.5, 4.0))
        server.start()

    return strike


def _hang(name: str) -> Callable[[Scene], None]:
    """Stop a server for a while, so that it accepts connections and answers nothing."""

    def strike(scene: Scene) -> None:
        processes = scene.server(name).processes()
        signal_all(processes, signal.SIGSTOP)
        pause(scene.rng.uniform(2.0, 2 * scene.lease))
        signal_all(processes, signal.SIGCONT)

    return strike


def _kill_engine(scene: Scene) -> None:
    assert scene.engine is not None
    scene.engine.kill()


def _kill_core(scene: Scene) -> None:
    """Kill vLLM's engine process under the worker that talks to it."""
    wait_for(lambda: scene.system.named("gpu", "EngineCore"), 300, "vLLM has an engine process")
    signal_all(scene.system.named("gpu", "EngineCore"), signal.SIGKILL)


def _kill_idle(scene: Scene) -> None:
    """F5: Celery on Redis loses this message every time."""
    load = scene.load
    feeding = load.feeding.is_set()
    load.feeding.clear()
    try:
        seconds = 90 * scene.patience
        if not load.await_terminal(load.jobs, seconds) or not load.askers.await_ended(seconds):
            scene.journal.violation("F5: the jobs before it do not end")
            return
        _submit_to_frozen(scene)
    finally:
        if feeding:
            load.feeding.set()


def _submit_to_frozen(scene: Scene) -> None:
    load = scene.load
    frozen = scene.system.tree("gpu") + scene.system.tree(rival("gpu"))
    try:
        _freeze_idle(frozen)
        job = load.submit(load.new_job("/v1/chat/completions"))
        with suppress(TimeoutError):
            wait_for(lambda: load.status(job) == "in_progress", 20, "planned")
        pause(0.5)  # the message is on its way to the frozen process
    finally:
        signal_all(frozen, signal.SIGKILL)
    _await_start(scene, job)


def _freeze_idle(processes: list[psutil.Process]) -> None:
    """None of them amid a heartbeat: with SQLite nobody could write until it is thawed."""
    for _ in range(100):
        signal_all(processes, signal.SIGSTOP)
        pause(0.05)
        if lockers().isdisjoint(process.pid for process in processes):
            return
        signal_all(processes, signal.SIGCONT)
        pause(0.05)
    raise AssertionError("an idle worker always holds a lock")


def lockers() -> set[int]:
    """Return the processes that alone hold a `flock`, such as the writer lock of SQLite."""
    held = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return {int(words[4]) for words in held if words[1:4] == ["FLOCK", "ADVISORY", "WRITE"]}


def _await_start(scene: Scene, job: Job) -> None:
    """Wait for the first result of a batch. Raises TimeoutError."""
    began = time.monotonic()

    def started() -> bool:
        polls = scene.load.polls.get(job.key)
        counts = polls[-1].request_counts if polls else None
        return bool(counts and counts.completed)

    with suppress(TimeoutError):
        wait_for(started, 4 * _START_SECONDS * scene.patience, "it starts")
    took = time.monotonic() - began
    scene.journal.violation(*late_start(job.key, took, scene.patience))
    scene.recovery("idle", took)


def late_start(key: str, took: float, patience: float = 1.0) -> list[str]:
    """F5: seconds from the kill to the first result."""
    most = _START_SECONDS * patience
    return [f"F5: {key} started after {took:.1f} s, not within {most:g} s"] if took > most else []


def _forget(scene: Scene) -> None:
    """F6: kill -9, and the append-only file is lost."""
    signal_all(scene.system.tree("broker"), signal.SIGKILL)
    shutil.rmtree(scene.system.data / "broker" / "appendonlydir", ignore_errors=True)


def _down(scene: Scene) -> None:
    """F6: down for a while, and empty afterwards."""
    until = time.monotonic() + 6
    while time.monotonic() < until:
        _forget(scene)
        pause(0.2)


def _flush(scene: Scene) -> None:
    with suppress(redis.RedisError), redis.Redis(unix_socket_path=str(socket_path(scene.system.data))) as broker:
        broker.flushall()


def _fill(scene: Scene) -> None:
    """F8: at its memory's limit it evicts nothing and takes nothing."""
    with suppress(redis.RedisError), redis.Redis(unix_socket_path=str(socket_path(scene.system.data))) as broker:
        broker.config_set("maxmemory", "1mb")
        pause(scene.rng.uniform(2.0, 2 * scene.lease))
        broker.config_set("maxmemory", "0")


def _repeat(scene: Scene) -> None:
    """F12: also those of jobs that ended long ago, in any order."""
    jobs = [job.batch_id for job in scene.load.jobs if job.batch_id]
    jobs = scene.rng.sample(jobs, min(len(jobs), 20))
    shards = range(max(scene.load.mix.lines) // int(SCALED["NIGHTMILL_SHARD_LINES"]) + 1)
    messages = [(task, Queue.PLAN, (job,)) for task in (Task.PLAN, Task.FINISH) for job in jobs]
    messages += [(Task.RUN, Queue.GENERATE, (job, n)) for job in jobs for n in shards]
    messages += [(Task.PURGE, Queue.INGEST, ())]
    batches = [intake.id for intake in scene.load.store_clients.intakes if intake.batch and intake.id][-20:]
    batches += scene.load.source_client.syncs[-20:]
    messages += [(task, Queue.PLAN, (job,)) for task in (Task.PLAN, Task.FINISH) for job in batches]
    messages += [(Task.RUN, queue, (job, 0)) for queue in (Queue.INGEST, Queue.EMBED) for job in batches]
    messages *= _REPEATS
    scene.rng.shuffle(messages)
    publisher = CeleryPublisher(Settings(data_dir=scene.system.data, broker_url=scene.broker_url))
    with suppress(BrokerUnavailable):
        for task, queue, arguments in messages:
            publisher.publish(task, queue, arguments)
    scene.journal.note(f"{len(messages)} messages were published in vain")


def _replace(name: str) -> Callable[[Scene], None]:
    """F3: the supervisor starts another as soon as it has ended."""

    def strike(scene: Scene) -> None:
        victim = _one(scene, name)
        main = scene.system.tree(victim)[:1]
        began = time.monotonic()
        signal_all(main, signal.SIGTERM)
        gone, _ = psutil.wait_procs(main, timeout=_END_SECONDS)
        if gone:
            scene.recovery(f"{name} ends", time.monotonic() - began)
        else:
            scene.journal.violation(f"F3: {victim} did not end within {_END_SECONDS:g} s of SIGTERM")

    return strike


def _shift_one(scene: Scene) -> None:
    """F17: the clock of one service jumps, and is set right again."""
    name = scene.rng.choice(("web", "dispatcher", "cpu", "gpu", "io"))
    _shift(scene, [str(process.pid) for process in scene.system.tree(_one(scene, name))], name)


def _shift_all(scene: Scene) -> None:
    _shift(scene, ["all"], "all")


def _shift(scene: Scene, files: list[str], whose: str) -> None:
    seconds = scene.rng.choice((3600, -3600, 86_400))
    scene.journal.note(f"the clock of {whose} jumps by {seconds} s")
    shifted = [scene.system.clocks / name for name in files]
    for file in shifted:
        file.write_text(str(seconds))
    pause(scene.rng.uniform(scene.lease, 2 * scene.lease))
    for file in shifted:
        file.unlink()


def _hold_database(scene: Scene) -> None:
    """F9: SQLite's writer lock is held for two leases, as by a process that was frozen inside a transaction."""
    with (scene.system.data / "nightmill.db.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        pause(2 * scene.lease)


def _kill_web(scene: Scene) -> None:
    """F11: a create whose answer may be cut off, then the same again until it is answered."""
    job = scene.load.new_job()
    cut = threading.Thread(target=_post_once, args=(scene, job), daemon=True)
    if scene.rng.random() < 0.5:  # the upload is what is cut, otherwise the batch
        scene.load.client.sdk.files.create(
            file=(f"{job.key}.jsonl", job.jsonl()), purpose="batch", extra_headers={"Idempotency-Key": job.key}
        )
    victims = scene.system.tree(_one(scene, "web"))
    cut.start()
    pause(scene.rng.uniform(0, _WEB_DELAY))
    signal_all(victims, signal.SIGKILL)
    cut.join(30)
    answered = job.batch_id
    scene.load.submit(job)
    if answered and answered != job.batch_id:
        scene.journal.violation(f"F11: {job.key} was {answered} and is {job.batch_id}")


def _post_once(scene: Scene, job: Job) -> None:
    """Post a job once, without the retries of the SDK."""
    load = scene.load
    with suppress(openai.APIError), load.client.hasty() as hasty:
        hasty.submit(job, load.receiver)


def _kill_io(scene: Scene) -> None:
    """F16: in the middle of a burst, which a replay of the last minute makes."""
    load = scene.load
    pending = load.client.replay(load.endpoint_id, time.time() - 60)
    scene.journal.note(f"{pending} webhooks are sent again")
    pause(scene.rng.uniform(0.1, 1.0))
    signal_all(scene.system.tree("io"), signal.SIGKILL)


def _kill_up(guard: bool) -> Callable[[Scene], None]:
    """Kill the supervisor: nothing may be left, and `up` on the same folder must go on with everything."""

    def strike(scene: Scene) -> None:
        system = scene.system
        system.remember()
        with suppress(psutil.NoSuchProcess):
            psutil.Process(system.guard() if guard else system.supervisor()).kill()
        try:
            wait_for(lambda: not system.family(), _GONE_SECONDS, "nothing is left of `up`")
        except TimeoutError:
            left = [f"{process.pid} {' '.join(command(process))[:120]}" for process in system.family()]
            scene.journal.violation(f"alive after the kill of `up`: {left}")
        assert system.process is not None
        system.process.wait(10)
        began = time.monotonic()
        system.start()
        scene.recovery("up again", time.monotonic() - began)

    return strike


FAULTS: dict[str, Fault] = {
    "gpu": Fault(_kill("gpu"), "F1", 20, rework=1),
    "gpu, main alone": Fault(_kill_main("gpu"), "F1", 6, rework=1),
    "embed": Fault(_kill("embed"), "F1", 10, rework=1),
    "cpu": Fault(_kill("cpu"), "F1", 8),
    "cpu, main alone": Fault(_kill_main("cpu"), "F1", 4),
    "cpu, one child": Fault(_kill_child("cpu"), "F1", 6),
    "evaluate": Fault(_kill("evaluate"), "F1", 4),
    "evaluate, main alone": Fault(_kill_main("evaluate"), "F1", 2),
    "engine": Fault(_kill_engine, "F1", 5, rework=2),
    "gpu, SIGTERM": Fault(_replace("gpu"), "F3", 4, rework=1, kills=False),
    "cpu, SIGTERM": Fault(_replace("cpu"), "F3", 2, kills=False),
    "io, SIGTERM": Fault(_replace("io"), "F3", 1, kills=False),
    "dispatcher, SIGTERM": Fault(_replace("dispatcher"), "F3", 1, kills=False),
    "web, SIGTERM": Fault(_replace("web"), "F3", 2, kills=False),
    "gpu zombie": Fault(_freeze("gpu"), "F4", 4, rework=1, kills=False),
    "embed zombie": Fault(_freeze("embed"), "F4", 3, rework=1, kills=False),
    "cpu zombie": Fault(_freeze("cpu"), "F4", 3, kills=False),
    "evaluate zombie": Fault(_freeze("evaluate"), "F4", 2, kills=False),
    "io zombie": Fault(_freeze("io"), "F4", 1, kills=False),
    "dispatcher zombie": Fault(_freeze("dispatcher"), "F4", 2, kills=False),
    "gpu idle": Fault(_kill_idle, "F5", 3),
    "broker, file lost": Fault(_forget, "F6", 4),
    "broker down": Fault(_down, "F6", 2),
    "broker flushed": Fault(_flush, "F6", 3, kills=False),
    "broker": Fault(_kill("broker"), "F7", 5),
    "broker frozen": Fault(_freeze("broker", 0.7, 2.7), "F7", 2, kills=False),
    "broker full": Fault(_fill, "F8", 2, kills=False),
    "messages repeated": Fault(_repeat, "F12", 3, kills=False),
    "database held": Fault(_hold_database, "F9", 2, kills=False),
    "clock of one": Fault(_shift_one, "F17", 2, kills=False),
    "clock of all": Fault(_shift_all, "F17", 1, kills=False),
    "web": Fault(_kill_web, "F11", 12),
    "io": Fault(_kill_io, "F16", 8),
    "dispatcher": Fault(_kill("dispatcher"), "dispatcher", 9),
    "supervisor": Fault(_kill_up(guard=False), "supervisor", 2, rework=3),
    "guard": Fault(_kill_up(guard=True), "supervisor", 2, rework=3),
}
SQLITE_ONLY = frozenset({"database held"})
VALKEY_ONLY = frozenset(name for name in FAULTS if name.startswith("broker"))

#: Of the servers that hosts share. An engine worker that can't write gives its shards back.
SERVER_FAULTS: dict[str, Fault] = {
    "RabbitMQ": Fault(_outage("RabbitMQ"), "F7", 5),
    "RabbitMQ frozen": Fault(_hang("RabbitMQ"), "F7", 2, kills=False),
    "PostgreSQL": Fault(_outage("PostgreSQL"), "F9", 5, rework=3),
    "PostgreSQL frozen": Fault(_hang("PostgreSQL"), "F9", 2, rework=3, kills=False),
    "S3": Fault(_outage("S3"), "S3", 5, rework=3),
    "S3 frozen": Fault(_hang("S3"), "S3", 2, rework=3, kills=False),
}

#: Of the vector database, where it is a server.
VECTOR_FAULTS: dict[str, Fault] = {
    WEAVIATE: Fault(_outage(WEAVIATE), "F19", 12, rework=1),
    "Weaviate frozen": Fault(_hang(WEAVIATE), "F19", 6, rework=1, kills=False),
}

#: With a real engine in process.
VLLM_FAULTS: dict[str, Fault] = {
    "engine core": Fault(_kill_core, "F1", 3, rework=1),
    "gpu worker": Fault(_kill("gpu"), "F1", 2, rework=1),
}
#: Where models are trained.
TUNING_FAULTS: dict[str, Fault] = {
    "finetune": Fault(_kill("finetune"), "F20", 6),
    "finetune, main alone": Fault(_kill_main("finetune"), "F20", 6),
    "trainer": Fault(_kill_trainer, "F20", 8),
    "tuned": Fault(_kill("tuned"), "F20", 6),
    "finetune, SIGTERM": Fault(_replace("finetune"), "F3", 2, kills=False),
    "finetune zombie": Fault(_freeze("finetune"), "F4", 3, kills=False),
    "tuned zombie": Fault(_freeze("tuned"), "F4", 2, kills=False),
}
ALL_FAULTS = FAULTS | VLLM_FAULTS | SERVER_FAULTS | VECTOR_FAULTS | TUNING_FAULTS


def deck(kills: int, rng: random.Random, names: Mapping[str, Fault] = FAULTS) -> list[str]:
    """Return so many kills, chosen by weight, and faults without a kill in proportion, in the seed's order.

    Where none of them kills, so many faults.
    """
    counted = [name for name in names if names[name].kills] or list(names)
    weights = sum(names[name].weight for name in counted)
    dealt: list[str] = []
    for name, fault in names.items():
        share = fault.weight * kills / weights
        dealt += [name] * (int(share) + (rng.random() < share % 1))
    rng.shuffle(dealt)
    while sum(name in counted for name in dealt) < kills:
        dealt.insert(rng.randrange(len(dealt) + 1), rng.choice(counted))
    return dealt
