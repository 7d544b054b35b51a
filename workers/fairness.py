"""Which doorbells ring next: fair between projects by weight, and inside a project by priority, deadline and age.

A pure function of what SQL says, so that a table of cases tests it. A project's load is what it has running and
rung; the project with the least load per weight is served first, one doorbell at a time. A high priority
therefore overtakes the project's own work and never another project's share.
"""

from collections import deque
from collections.abc import Mapping, Sequence

from jobs.outbox import Ring


def choose(
    waiting: Mapping[str, Sequence[Ring]],
    load: Mapping[str, int],
    weights: Mapping[str, float],
    room: float,
    small: float = 1.0,
) -> list[Ring]:
    """Doorbells of `waiting` (each project's in its own order) until `room` is taken: small ones take `small` of it."""
    queues = {project: deque(rings) for project, rings in waiting.items() if rings}
    loads = {project: load.get(project, 0) for project in queues}
    chosen: list[Ring] = []
    while queues and room > 0:
        project = min(queues, key=lambda name: (loads[name] / weights.get(name, 1.0), name))
        chosen.append(queues[project].popleft())
        room -= small if chosen[-1].small else 1
        loads[project] += 1
        if not queues[project]:
            del queues[project]
    return chosen
