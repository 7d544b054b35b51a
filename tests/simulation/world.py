"""A world of one seed: virtual time, a database whose answers get lost, a broker that delays messages.

    Actor (a generator; each `yield` is how long it does something else) ──▶ World.run picks the next by virtual time
        │                                                                     crash: a process's actors are dropped
        ├── World.write ──▶ the real ledger on a real SQLite                  freeze: they go on much later (zombies)
        └── Broker ◀── the real Dispatcher with its real Maintenance, on the world's clock

Everything random comes from one seed, and only one actor moves at a time: a seed replays to the letter.
"""

import heapq
import itertools
import logging
import random
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from unittest.mock import patch

from sqlalchemy import delete
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.tables import Base
from workers.dispatcher.publisher import BrokerUnavailable

T = TypeVar("T")
Actor = Generator[float, None, None]
Steps = Generator[float, None, T]

_EPOCH = 1_800_000_000.0  # what the world's clocks on the wall began with


@dataclass(frozen=True)
class Weather:
    """How bad it gets: chances per occasion, and the seconds between crashes and freezes (0: never)."""

    message_lost: float = 0.0
    message_doubled: float = 0.0
    message_refused: float = 0.0
    message_late: float = 0.0
    database_busy: float = 0.0
    answer_lost: float = 0.0
    crash_every: float = 0.0
    freeze_every: float = 0.0
    leader_every: float = 0.0
    clock_jumps: bool = False
    poison: float = 0.0


@dataclass(eq=False)
class Process:
    """Group threads that die, or stop, together."""

    name: str
    alive: bool = True
    frozen_until: float = 0.0


class SimulatedDatabase(Database):
    """The real database, that fails before a transaction or loses the answer after it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.chance: Callable[[str], bool] = lambda _: False

    @contextmanager
    def write(self) -> Iterator[Session]:
        if self.chance("database_busy"):
            raise DatabaseBusy
        with super().write() as session:
            yield session
        if self.chance("answer_lost"):
            raise DatabaseBusy

    def breathe(self, stop: object = None) -> None:
        """Return at once: nothing waits in a simulation."""


@dataclass
class World:
    seed: int
    weather: Weather
    db: SimulatedDatabase
    calm_after: float = 14.0
    at: float = 0.0
    jump: float = 0.0
    crashes: int = 0
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._tie = itertools.count()
        self._actors: list[tuple[float, float, int, Process, Actor]] = []
        self.db.chance = self.chance

    def clock(self) -> float:
        """Monotonic, the same for all."""
        return self.at

    def wall(self) -> float:
        return _EPOCH + self.at + self.jump

    def chance(self, what: str) -> bool:
        """Whether a misfortune of this kind happens now. Once it is calm, none does."""
        return self.at < self.calm_after and self.random.random() < getattr(self.weather, what)

    def note(self, *words: object) -> None:
        self.log.append(f"{self.at:7.3f} {' '.join(map(str, words))}")

    def start(self, process: Process, actor: Actor, delay: float = 0.0) -> None:
        heapq.heappush(self._actors, (self.at + delay, self.random.random(), next(self._tie), process, actor))

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Let everybody act until it is so; False when virtual time ran out first."""
        with patch("time.time", self.wall), _silence():
            while self._actors and self.at < limit:
                if until():
                    return True
                self._step()
        return until()

    def write(self, work: Callable[[Session], T]) -> Steps[T]:
        """Run a guarded write until it is answered, as `Database.retrying` does; others act in between."""
        while True:
            try:
                with self.db.write() as session:
                    return work(session)
            except DatabaseBusy:
                yield self.random.uniform(0.02, 0.3)

    def clear(self) -> None:
        with Database.write(self.db) as session:
            for table in Base.metadata.tables.values():
                session.execute(delete(table))

    def _step(self) -> None:
        at, _, _, process, actor = heapq.heappop(self._actors)
        if not process.alive:
            return
        if at < process.frozen_until:
            self.start(process, actor, process.frozen_until - self.at)
            return
        self.at = max(self.at, at)
        try:
            pause = next(actor)
        except StopIteration:
            return
        self.start(process, actor, max(pause, 0.0) * self.random.uniform(0.8, 1.25))


@contextmanager
def _silence() -> Iterator[None]:
    """Silence the log: what goes wrong in the simulation is intended."""
    logger = logging.getLogger("workers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


class Broker:
    """Takes messages and may lose, double, delay and shuffle them, and say no when it means yes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._queues: dict[str, list[tuple[float, str, tuple[object, ...]]]] = {}

    def publish(self, task: str, queue: str, arguments: Sequence[object]) -> None:
        world = self._world
        if world.chance("message_refused"):
            if world.random.random() < 0.5:
                self._put(task, queue, arguments)  # and says it did not
            raise BrokerUnavailable
        if world.chance("message_lost"):
            world.note("message lost", task, *arguments)
            return
        for _ in range(3 if world.chance("message_doubled") else 1):
            self._put(task, queue, arguments)

    def take(self, queues: Collection[str]) -> tuple[str, tuple[object, ...]] | None:
        """Return a message that has arrived, in no order."""
        ripe = [
            (queue, message)
            for queue in queues
            for message in self._queues.get(queue, [])
            if message[0] <= self._world.at
        ]
        if not ripe:
            return None
        queue, message = self._world.random.choice(ripe)
        self._queues[queue].remove(message)
        return message[1], message[2]

    def lose_all(self) -> None:
        self._queues.clear()

    def _put(self, task: str, queue: str, arguments: Sequence[object]) -> None:
        late = self._world.random.uniform(1, 8) if self._world.chance("message_late") else 0.0
        self._queues.setdefault(queue, []).append((self._world.at + late, task, tuple(arguments)))
