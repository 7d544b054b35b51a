"""Which doorbells ring next: fair between projects by weight, and inside a project by priority, deadline and age.

A function of what SQL says and of whose turn it was, so that a table of cases tests it. A project's load is what it has
running and rung; the project with the least load per weight is served first, one doorbell at a time. A high priority
therefore overtakes the project's own work and never another project's share.

Where more projects wait than there are places, most have no load at all. Then they take turns: start-time fair queueing
(Goyal, Vin, Cheng 1996), each doorbell costing a project one over its weight. Who was away does not save turns up.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jobs.outbox import Ring


@dataclass(slots=True)
class Turns:
    """How far each project is on one queue; those who are not ahead of everybody else are not remembered."""

    _now: float = 0.0
    _ahead: dict[str, float] = field(default_factory=dict)

    def of(self, project: str) -> float:
        return max(self._now, self._ahead.get(project, 0.0))

    def take(self, project: str, weight: float) -> None:
        start = self.of(project)
        self._ahead[project] = start + 1 / weight
        if start > self._now:
            self._now = start
            self._ahead = {name: at for name, at in self._ahead.items() if at > start}


def choose(
    waiting: Mapping[str, Sequence[Ring]],
    load: Mapping[str, int],
    weights: Mapping[str, float],
    room: float,
    small: float = 1.0,
    turns: Turns | None = None,
) -> list[Ring]:
    """Doorbells of `waiting` (each project's in its own order) until `room` is taken: small ones take `small` of it.

    `turns` are the queue's, which this moves on.
    """
    turns = turns or Turns()
    queues = {project: deque(rings) for project, rings in waiting.items() if rings}
    loads = {project: load.get(project, 0) for project in queues}
    chosen: list[Ring] = []
    while queues and room > 0:
        project = min(queues, key=lambda name: (loads[name] / weights.get(name, 1.0), turns.of(name), name))
        turns.take(project, weights.get(project, 1.0))
        chosen.append(queues[project].popleft())
        room -= small if chosen[-1].small else 1
        loads[project] += 1
        if not queues[project]:
            del queues[project]
    return chosen
