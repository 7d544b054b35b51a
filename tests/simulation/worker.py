"""Model a worker process: it takes messages, sends heartbeats, claims, answers, commits, and may be a zombie.

It calls the real ledger in the order in which `workers.lifecycle`, `workers.batches.running` and
`workers.batches.finishing` do. What it leaves out is what they do between those calls: bytes, engines, threads.
"""

import itertools
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.errors import ClaimLost, DatabaseBusy
from jobs.files.tables import File
from jobs.fleet import workers
from jobs.fleet.tables import Worker
from jobs.ledger import ledger, shards
from jobs.ledger.ledger import JobClaim
from jobs.ledger.shards import ShardClaim, Tally
from jobs.ledger.slot_weights import STALLS_BEFORE_ISOLATION
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Segment, Shard
from jobs.queues import Queue, Task
from jobs.settings import Settings
from jobs.usage import budgets
from tests.simulation.world import Actor, Broker, Process, Steps, World

POOLS = {"cpu": [Queue.PLAN.value], "gpu": [Queue.GENERATE.value]}
_ISOLATED_ATTEMPTS = 2


@dataclass(frozen=True)
class Plan:
    """Describe the request of a client: lines of each shard, lines that kill their worker, and whether it is valid."""

    lines: tuple[int, ...]
    poison: frozenset[tuple[int, int]] = frozenset()
    valid: bool = True


@dataclass(eq=False)
class ClaimHandle:
    job_id: str
    n: int | None
    epoch: int
    stop: bool = False
    lost: bool = False


@dataclass
class Site:
    """Hold what outlives every process."""

    world: World
    broker: Broker
    config: Settings
    plans: dict[str, Plan] = field(default_factory=dict)
    segments: dict[str, tuple[int, ...]] = field(default_factory=dict)  # path → its lines
    files: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # path → shard and line of each result
    asked: list[tuple[str, int, int]] = field(default_factory=list)  # every request that reached the engine
    names: "itertools.count[int]" = field(default_factory=itertools.count)


class WorkerProcess(Process):
    def __init__(self, site: Site, pool: str, slots: int) -> None:
        super().__init__(f"{pool}-{next(site.names)}")
        self.site = site
        self.world = site.world
        self.pool = pool
        self.busy = 0
        self.slots = slots
        self.engines: list[ClaimHandle] = []
        self.world.start(self, self.heartbeat())
        self.world.start(self, self.consumer())

    # ── the process itself ──

    def heartbeat(self) -> Actor:
        while True:
            try:
                self._send_heartbeats()
            except DatabaseBusy:
                yield 0.1
                continue
            yield self.site.config.heartbeat_seconds / 2
            self._look()
            yield self.site.config.heartbeat_seconds / 2

    def _send_heartbeats(self) -> None:
        claims = {(handle.job_id, handle.n, handle.epoch): handle for handle in self.engines if handle.n is not None}
        with self.world.db.write() as session:
            if not workers.heartbeat(session, self.name):
                workers.register(session, self._row())
            lost = shards.heartbeat(session, list(claims))  # type: ignore[arg-type]
            gone = [
                h for h in self.engines if h.n is None and not ledger.heartbeat(session, h.job_id, h.epoch, self.name)
            ]
        for handle in [*(claims[key] for key in lost), *gone]:
            handle.lost = True

    def _look(self) -> None:
        with self.world.db.read() as session:
            for handle in self.engines:
                if handle.n is not None and session.get_one(Job, handle.job_id).state != JobState.RUNNING:
                    handle.stop = True

    def _row(self) -> Worker:
        at = self.world.wall()
        return Worker(
            id=self.name, pool=self.pool, host="simulated", pid=1, started=1, queues=POOLS[self.pool], models=["*"],
            slots=self.slots, state="ready", created_at=at, seen_at=at,
        )  # fmt: skip

    def consumer(self) -> Actor:
        yield self.world.random.uniform(0, 0.3)
        while True:
            message = self.site.broker.take(POOLS[self.pool]) if self.busy < self.slots else None
            if message is not None:
                self.busy += 1
                self.world.start(self, self._task(*message))
            yield 0.05

    def _task(self, task: str, arguments: tuple[object, ...]) -> Actor:
        job_id = str(arguments[0])
        if task == Task.RUN:
            yield from self.run(job_id, int(str(arguments[1])))
        elif task == Task.PLAN:
            yield from self.plan(job_id)
        else:
            yield from self.finish(job_id)
        self.busy -= 1

    def die(self) -> None:
        self.alive = False
        self.world.crashes += 1
        self.world.note(self.name, "dies")

    # ── planning ──

    def plan(self, job_id: str) -> Steps[None]:
        claim = yield from self.world.write(partial(ledger.claim, job_id=job_id, task=Task.PLAN, worker_id=self.name))
        if claim is None:
            return
        handle = ClaimHandle(job_id, None, claim.epoch)
        self.engines.append(handle)
        try:
            yield from self._plan(claim, self.site.plans[job_id])
        except ClaimLost:
            self.world.note(self.name, "fenced while planning", job_id)
        self.engines.remove(handle)

    def _plan(self, claim: JobClaim, plan: Plan) -> Steps[None]:
        while (yield from self.world.write(partial(shards.uncut, claim=claim, limit=2))):
            yield 0.02
        if not plan.valid:
            yield from self.world.write(partial(ledger.reject, claim=claim, errors=[{"line": 1}]))
            return
        rows = _rows(claim.job.id, plan)
        for first in range(0, len(rows), 2):
            yield 0.1
            yield from self.world.write(partial(_cut, claim=claim, rows=rows[first : first + 2]))
        total = sum(plan.lines)
        yield from self.world.write(
            partial(ledger.begin_running, claim=claim, total=total, model="tiny", queue=Queue.GENERATE)
        )

    # ── running ──

    def run(self, job_id: str, n: int) -> Steps[None]:
        claim = yield from self.world.write(partial(_claim_shard, job_id=job_id, n=n, worker_id=self.name))
        if claim is None:
            return
        handle = ClaimHandle(job_id, n, claim.epoch)
        self.engines.append(handle)
        try:
            yield from _Run(self, claim, handle).all()
        except ClaimLost:
            self.world.note(self.name, "fenced while running", job_id, n, claim.epoch)
        self.engines.remove(handle)

    # ── finishing ──

    def finish(self, job_id: str) -> Steps[None]:
        claim = yield from self.world.write(partial(ledger.claim, job_id=job_id, task=Task.FINISH, worker_id=self.name))
        if claim is None:
            return
        handle = ClaimHandle(job_id, None, claim.epoch)
        self.engines.append(handle)
        path = f"files/{next(self.site.names)}"
        try:
            values = yield from self._assemble(claim, path)
            yield from self.world.write(partial(_close, claim=claim, values=values, path=path))
        except ClaimLost:
            self.world.note(self.name, "fenced while finishing", job_id)
        self.engines.remove(handle)

    def _assemble(self, claim: JobClaim, path: str) -> Steps[dict[str, object]]:
        results: list[tuple[int, int]] = []
        failed = 0
        with self.world.db.read() as session:
            numbers = session.scalars(select(Shard.n).where(Shard.job_id == claim.job.id)).all()
        for n in numbers:
            yield 0.05
            with self.world.db.read() as session:
                query = select(Segment).where(Segment.job_id == claim.job.id, Segment.n == n)
                segments = session.scalars(query).all()
            results += [(n, line) for segment in segments for line in self.site.segments[segment.path]]
            failed += sum(_bits(segment.covered) - _bits(segment.good) for segment in segments)
        self.site.files[path] = results
        return {"completed": len(results) - failed, "failed": failed, "output_file_id": path}


class _Run:
    """Hold a claim on a shard, as `workers.batches.running` does."""

    def __init__(self, worker: WorkerProcess, claim: ShardClaim, handle: ClaimHandle) -> None:
        self.worker = worker
        self.site = worker.site
        self.claim = claim
        self.handle = handle
        self.seq = 0
        self.left = [line for line in range(claim.lines) if not claim.covered >> line & 1]

    def all(self) -> Steps[None]:
        isolated = self.claim.stalls >= STALLS_BEFORE_ISOLATION or self.claim.isolated_line is not None
        batch: list[int] = []
        while self.left and not self.handle.stop:
            line = self.left[0]
            if isolated and self._convicted(line):
                yield from self._commit([line], bad=[line])
                continue
            if isolated:
                yield from self.worker.world.write(partial(shards.record_isolated_attempt, claim=self.claim, line=line))
            yield from self._ask(line)
            batch.append(line)
            if isolated or len(batch) == min(2, len(self.left)):
                yield from self._commit(batch)
                batch = []
            else:
                self.left.append(self.left.pop(0))
        yield from self._close(batch)

    def _convicted(self, line: int) -> bool:
        return line == self.claim.isolated_line and self.claim.isolated_attempts >= _ISOLATED_ATTEMPTS

    def _ask(self, line: int) -> Steps[None]:
        job_id, n = self.claim.job.id, self.claim.n
        self.site.asked.append((job_id, n, line))
        if (n, line) in self.site.plans[job_id].poison:
            self.worker.die()
        yield 0.15
        if self.handle.lost:
            raise ClaimLost

    def _close(self, batch: list[int]) -> Steps[None]:
        if batch:
            yield from self._commit(batch)
        if self.left:
            yield from self.worker.world.write(partial(shards.release, claim=self.claim))
        elif not self.seq:
            yield from self.worker.world.write(self._nothing_left)

    def _nothing_left(self, session: Session) -> None:
        shards.finish_empty(session, self.claim)
        ledger.advance_job(session, self.claim.job.id, actor=self.worker.name)

    def _commit(self, lines: list[int], bad: list[int] | None = None) -> Steps[None]:
        claim, seq = self.claim, self.seq
        path = shards.segment_path(claim.job.id, claim.n, claim.epoch, seq)
        self.site.segments[path] = tuple(lines)
        yield 0.02
        self.left = [line for line in self.left if line not in lines]
        covered = sum(1 << line for line in lines)
        tally = Tally(covered, covered & ~sum(1 << line for line in bad or []), 0, len(lines), 0, len(lines), 0)
        last = not self.left
        whole = f"files/{next(self.site.names)}" if len(lines) == claim.job.total else None
        if whole:
            self.site.files[whole] = [(claim.n, line) for line in lines]
            yield 0.02
        counts = {"completed": tally.done - tally.failed, "failed": tally.failed, "output_file_id": whole}

        def work(session: Session) -> None:
            job = shards.commit(session, claim, seq, path, len(lines), tally, last=last)
            if last and whole and job is not None:
                taken = ledger.claim_finish(session, job, self.worker.name)
                if taken is not None:
                    _close(session, taken, counts, whole)
            elif last:
                ledger.advance_job(session, claim.job.id, actor=self.worker.name)

        yield from self.worker.world.write(work)
        self.seq += 1


def _rows(job_id: str, plan: Plan) -> list[dict[str, object]]:
    starts = list(itertools.accumulate(plan.lines, initial=0))
    return [
        {"job_id": job_id, "n": n, "first_line": starts[n], "lines": count, "offset": starts[n], "length": count}
        | {"max_output_tokens": count}
        for n, count in enumerate(plan.lines)
    ]


def _claim_shard(session: Session, job_id: str, n: int, worker_id: str) -> ShardClaim | None:
    if budgets.hold_back(session, job_id, n, lambda _name: None):
        return None
    return shards.claim(session, job_id, n, worker_id)


def _cut(session: Session, claim: JobClaim, rows: list[dict[str, object]]) -> None:
    shards.cut(session, claim, Queue.GENERATE, [Shard(**row) for row in rows])


def _close(session: Session, claim: JobClaim, values: dict[str, object], path: str) -> None:
    row = File(id=path, project_id="proj_1", purpose="batch_output", filename="o", bytes=1, path=path, created_at=1.0)
    ledger.close(session, claim, values, [row])


def _bits(bitmap: bytes) -> int:
    return int.from_bytes(bitmap, "little").bit_count()
