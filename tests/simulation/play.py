"""Play a seed to its end: clients, workers, a dispatcher, all kinds of faults, calm, and then the judgement."""

import random
from functools import partial

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.errors import Conflict, DatabaseBusy, InvalidRequest
from jobs.fleet.tables import Model
from jobs.ledger import audit, feed, ledger
from jobs.ledger.states import LIVE, JobState
from jobs.ledger.tables import Job, Shard
from jobs.platform.storage import Storage
from jobs.queues import Queue
from jobs.security.tables import Project
from jobs.settings import Settings
from jobs.timings import Timings
from jobs.usage import budgets
from jobs.usage.budgets import MICROS_PER_CENT
from jobs.usage.tables import Price
from jobs.webhooks.tables import Event
from tests.simulation.worker import Plan, Site, WorkerProcess
from tests.simulation.world import Actor, Broker, Process, SimulatedDatabase, Steps, Weather, World
from tests.support import sample_jobs
from tests.support.invariants import History, violations
from workers.dispatcher.loop import Dispatcher

CONFIG = Settings(
    lease_seconds=2,
    redelivery_seconds=1,
)
TIMINGS = Timings(cancel_grace=1.0)
#: Virtual seconds in which every job must have ended once it is calm: a poison takes four leases.
PATIENCE = 90.0
MAX_LINES = 5  # of a shard
#: Which states may be seen after which; what is polled never goes back.
_RANK = {
    JobState.QUEUED: 0, JobState.RUNNING: 1, JobState.FINISHING: 2, JobState.CANCELLING: 2, JobState.EXPIRING: 2,
}  # fmt: skip

WEATHERS = {
    "broker": Weather(message_lost=0.3, message_doubled=0.2, message_refused=0.15, message_late=0.3),
    "database": Weather(database_busy=0.08, answer_lost=0.08, message_doubled=0.1),
    "kills": Weather(crash_every=1.5, leader_every=5),
    "zombies": Weather(freeze_every=1.5, message_doubled=0.2, message_late=0.2),
    "poison": Weather(poison=0.1),
    "everything": Weather(0.15, 0.15, 0.1, 0.15, 0.03, 0.03, 4, 4, 6, clock_jumps=True, poison=0.03),
}


class Nowhere:
    """The storage of maintenance. What it removes is missed by nobody: it is the inside of jobs that have ended."""

    def delete(self, path: str) -> None: ...


def weather_of(seed: int) -> Weather:
    return list(WEATHERS.values())[seed % len(WEATHERS)]


def play(seed: int, db: SimulatedDatabase) -> list[str]:
    """Play this seed, which determines the faults too; return what went wrong."""
    return Game(seed, weather_of(seed), db).play()


class Game:
    def __init__(self, seed: int, weather: Weather, db: SimulatedDatabase) -> None:
        self.world = World(seed, weather, db)
        self.world.clear()
        self.random = random.Random(f"clients of {seed}")
        self.site = Site(self.world, Broker(self.world), CONFIG)
        self.client = Process("client")
        self.workers: list[WorkerProcess] = []
        self.leader = Process("dispatcher")
        self.history = History()
        self.seen: dict[str, list[str]] = {}
        self.waited = set[str | None]()  # what jobs waited for
        self.read, self.position = list[str](), 0  # by a reader of the feed: the ids of events, and its cursor
        self.wrong: list[str] = []
        self.poison: frozenset[tuple[int, int]] = frozenset()  # of every job, beside the weather's
        self.expected = 0
        self.submitted = 0
        self.after: list[str] = []  # jobs that are there, and may be waited for
        self.over = False
        self.cents: int | None = None  # the spend limit, where there is one, in lines: each costs a cent

    def play(self) -> list[str]:
        self._begin()
        limit = self.world.calm_after + PATIENCE
        if not self.world.run(self._over, limit):
            self.wrong.append(f"after {limit:.0f} s not all has ended: {self._live()}")
        self._account()
        return self.wrong

    # ── who takes part ──

    def _begin(self) -> None:
        with Database.write(self.world.db) as session:
            session.add(Project(id="proj_1", name="one", created_at=1.0))
            session.add(Model(id="tiny", queue=Queue.GENERATE, created_at=1.0, seen_at=1.0))
            for kind, price in (("input", 0), ("output", MICROS_PER_CENT)):
                session.add(Price(model="tiny", kind=kind, since=1, usd_per_million=price, created_at=1.0))
        self.expected = self.random.randint(1, 3)
        for number in range(self.expected):
            self.world.start(self.client, self._customer(f"batch_{number}"), self.random.uniform(0, 4))
        self.world.start(self.client, self._watcher())
        for pool, slots in (("cpu", 1), ("gpu", 2), ("gpu", 1)):
            self._hire(pool, slots)
        self._lead()
        if self.cents is not None:
            self.world.start(self.client, self._treasurer())
        self._misfortunes()

    def _hire(self, pool: str, slots: int) -> None:
        self.workers.append(WorkerProcess(self.site, pool, slots))

    def _lead(self) -> None:
        self.leader = Process("dispatcher")
        self.world.start(self.leader, self._dispatcher())

    def _dispatcher(self) -> Actor:
        storage: Storage = Nowhere()  # type: ignore[assignment]
        dispatcher = Dispatcher(CONFIG, self.world.db, storage, self.site.broker, self.world.clock, TIMINGS)
        while True:
            try:
                dispatcher.tick()
            except DatabaseBusy:
                yield 0.2
            yield 0.2

    def _customer(self, job_id: str) -> Actor:
        lines = tuple(self.random.randint(1, MAX_LINES) for _ in range(self.random.randint(1, 4)))
        everything = [(n, line) for n, count in enumerate(lines) for line in range(count)]
        poison = frozenset(one for one in everything if self.random.random() < self.world.weather.poison) | self.poison
        self.site.plans[job_id] = Plan(lines, poison, valid=self.random.random() < 0.9)
        yield from self._submit(job_id)
        self.submitted += 1
        self.after.append(job_id)
        will = self.random.random()
        yield self.random.uniform(0, 4)
        if will < 0.25:
            yield from self._cancel(job_id)
        elif will < 0.4:
            yield from self.world.write(lambda session: _pass_deadline(session, job_id))

    def _submit(self, job_id: str) -> Steps[None]:
        """Submit a job. Before a repeated submit, ask whether the first one has created it.

        Some jobs wait for earlier jobs, as far as these can complete.
        """
        after = list(self.after) if self.random.random() < 0.5 else []
        while True:
            try:
                with self.world.db.write() as session:
                    ledger.submit(session, sample_jobs.new_job(id=job_id), actor="key:sim", after=after)
                return
            except InvalidRequest:
                after = []
                continue
            except DatabaseBusy:
                yield 0.2
            with self.world.db.read() as session:
                if session.get(Job, job_id) is not None:
                    return

    def _cancel(self, job_id: str) -> Steps[None]:
        try:
            yield from self.world.write(lambda session: ledger.cancel(session, job_id, actor="key:sim"))
        except Conflict:
            self.world.note("too late to cancel", job_id)

    def _treasurer(self) -> Actor:
        """Raise the spend limit in small steps, and remove it when it is calm."""
        while self.world.at < self.world.calm_after:
            assert self.cents is not None
            self.cents += 1
            yield from self.world.write(partial(_limit, cents=self.cents))
            yield self.random.uniform(2, 4)
        self.cents = None
        yield from self.world.write(partial(_limit, cents=None))

    def _check_budget(self, session: Session) -> None:
        """Check that the limit is passed by the lines of one shard at most."""
        budget = budgets.budget_of(session, "proj_1", lambda _name: None)
        used = (budget.spent + budget.reserved) / MICROS_PER_CENT
        if self.cents is not None and used > self.cents + MAX_LINES:
            self.wrong.append(f"{used} is spent or reserved, of {self.cents}")
        asked = session.scalar(select(func.coalesce(func.sum(Shard.done), 0))) or 0
        if asked * MICROS_PER_CENT != budget.spent:
            self.wrong.append(f"{asked} lines are done, and {budget.spent} is spent")

    def _watcher(self) -> Actor:
        """Poll as a client does, and check the database as no client can."""
        while True:
            with self.world.db.read() as session:
                self.wrong += violations(session) + self.history.look(session)
                self._check_budget(session)
                for job_id, state, waits in session.execute(select(Job.id, Job.state, Job.waiting_for)):
                    self._saw(job_id, JobState(state))
                    self.waited.add(waits)
            self._read_feed()
            self.over = self.submitted == self.expected and not self._live()
            yield 0.4

    def _read_feed(self) -> bool:
        """Read the feed on from the cursor, as a client does, in small pages; return whether there was anything."""
        with self.world.db.read() as session:
            found = feed.after(session, "proj_1", self.position, 3)
        self.read += [event.id for event in found]
        self.position = found[-1].position or 0 if found else self.position
        return bool(found)

    def _saw(self, job_id: str, state: JobState) -> None:
        states = self.seen.setdefault(job_id, [])
        if states and _RANK.get(JobState(states[-1]), 3) > _RANK.get(state, 3):
            self.wrong.append(f"{job_id} went back from {states[-1]} to {state}")
        states.append(state)

    # ── misfortunes ──

    def _misfortunes(self) -> None:
        nature = Process("nature")
        weather = self.world.weather
        for every, act in (
            (weather.crash_every, self._crash),
            (weather.freeze_every, self._freeze),
            (weather.leader_every, self._change_leader),
            (3.0 if weather.clock_jumps else 0.0, self._jump),
        ):
            if every:
                self.world.start(nature, self._again_and_again(every, act), every)
        self.world.start(nature, self._mend())

    def _again_and_again(self, every: float, act) -> Actor:  # type: ignore[no-untyped-def]
        while self.world.at < self.world.calm_after:
            act()
            yield every

    def _mend(self) -> Actor:
        """Replace workers that have died by new ones, as a supervisor does."""
        while True:
            for worker in [worker for worker in self.workers if not worker.alive]:
                self.workers.remove(worker)
                self._hire(worker.pool, worker.slots)
            yield 0.5

    def _crash(self) -> None:
        self.world.random.choice(self.workers).die()
        if self.world.random.random() < 0.2:
            self.site.broker.lose_all()

    def _freeze(self) -> None:
        worker = self.world.random.choice(self.workers)
        worker.frozen_until = self.world.at + self.world.random.uniform(1, 3) * CONFIG.lease_seconds
        self.world.note(worker.name, "freezes until", round(worker.frozen_until, 2))

    def _change_leader(self) -> None:
        self.leader.alive = False
        self._lead()

    def _jump(self) -> None:
        self.world.jump = self.world.random.choice([-3600.0, 0.0, 3600.0, 86_400.0])

    # ── the accounts ──

    def _live(self) -> list[tuple[str, str]]:
        with self.world.db.read() as session:
            return [(row.id, row.state) for row in session.scalars(select(Job).where(Job.state.in_(LIVE)))]

    def _over(self) -> bool:
        return self.over

    def _account(self) -> None:
        self.world.calm_after = -1.0
        with self.world.db.write() as session:
            self.wrong += violations(session)
            while audit.seal(session):
                session.flush()
            self.wrong += audit.verify(session).faults
        self._account_feed()
        for job_id, plan in self.site.plans.items():
            self.wrong += [f"{job_id}: {wrong}" for wrong in self._job(sample_jobs.job(self.world.db, job_id), plan)]
        self.wrong += self._rework()

    def _account_feed(self) -> None:
        """Check that the reader had every event once, in the order of the feed."""
        with self.world.db.write() as session:
            while feed.number(session):
                session.flush()
            self.wrong += violations(session)
        while self._read_feed():
            pass
        with self.world.db.read() as session:
            told = session.scalars(select(Event.id).order_by(Event.position)).all()
        if self.read != told:
            self.wrong.append(f"the feed was read as {self.read}, and is {told}")

    def _job(self, job: Job, plan: Plan) -> list[str]:
        if job.state in LIVE or job.state == JobState.FAILED:
            may_fail = not plan.valid or (job.errors or [{}])[0].get("code") == "dependency_failed"
            return [] if (job.state != JobState.FAILED or may_fail) else ["failed though it was valid"]
        results = self.site.files[job.output_file_id or ""]
        everything = {(n, line) for n, count in enumerate(plan.lines) for line in range(count)}
        wrong = []
        if len(results) != len(set(results)) or not set(results) <= everything:
            wrong.append(f"a line is there twice, or never was: {sorted(results)}")
        if job.state == JobState.SUCCEEDED and set(results) != everything:
            wrong.append(f"lines are missing: {everything - set(results)}")
        if job.completed + job.failed != len(results):
            wrong.append(f"counts {job.completed} + {job.failed} of {len(results)} results")
        return wrong

    def _rework(self) -> list[str]:
        """Check that lines are asked twice only where a process died, and within the bound."""
        again = len(self.site.asked) - len(set(self.site.asked))
        weather = self.world.weather
        if weather.freeze_every:
            return []
        bound = self.world.crashes * 2 * 5
        if weather.leader_every == weather.crash_every == weather.poison == 0 and not self.poison:
            bound = 0
        return [f"{again} requests were asked again, and {bound} may be"] if again > bound else []


def _limit(session: Session, cents: int | None) -> None:
    budgets.change_limit(session, budgets.ORGANIZATION, cents, actor="operator")


def _pass_deadline(session: Session, job_id: str) -> None:
    session.execute(update(Job).where(Job.id == job_id, Job.state.in_(LIVE)).values(deadline=1.0))
