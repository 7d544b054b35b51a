"""Clients that keep jobs of one kind open, beside the batches of a run: the base of tuners and evaluators."""

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from tests.chaos.journal import Journal
from tests.support.system import pause

if TYPE_CHECKING:
    from tests.chaos.load import Client


class Followed(Protocol):
    """A job as its client knows it. The `id` is empty until the job is created."""

    key: str
    id: str
    status: str

    @property
    def ended(self) -> bool: ...


J = TypeVar("J", bound=Followed)


@dataclass
class JobClients(ABC, Generic[J]):
    """The jobs of these clients. `width` jobs are kept open."""

    client: "Client"
    journal: Journal
    rng: random.Random
    width: int
    moved: Callable[[], None]
    jobs: list[J] = field(default_factory=list)
    _busy: bool = False
    _due: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    @abstractmethod
    def submit(self) -> None:
        """Create a job. Raises OpenAIError."""

    @abstractmethod
    def look(self, job: J) -> None:
        """Look at a job that has not ended."""

    @property
    def open(self) -> list[J]:
        return [job for job in self.jobs if not job.ended]

    @property
    def is_idle(self) -> bool:
        """Return whether nothing is left to be done or to end."""
        return not (self._busy or self.open or self._due)

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        """Let a later step do something, after so many seconds."""
        self._due.append((time.monotonic() + seconds, do))

    def step(self, *, feeding: bool) -> None:
        """Do what is due, create a job if there are too few, and look at all that are open. Raises OpenAIError."""
        self._busy = True
        try:
            for due in [due for due in self._due if due[0] <= time.monotonic() or not feeding]:
                self._due.remove(due)
                due[1]()
            if feeding and len(self.open) < self.width:
                self.submit()
            for job in [job for job in self.open if job.id]:
                self.look(job)
        finally:
            self._busy = False

    def await_idle(self, seconds: float) -> bool:
        """Return whether everything ends in time."""
        deadline = time.monotonic() + seconds
        while not self.is_idle:
            if time.monotonic() > deadline:
                return False
            pause(0.05)
        return True
