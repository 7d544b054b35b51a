"""Say of a model whether it is served now, by how many workers, and if not, why."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.orm import Session

from jobs.fleet import quarantine, workers
from jobs.fleet.models_file import EngineKind
from jobs.fleet.workers import Loading
from jobs.ledger import pauses
from jobs.ledger.pauses import Scope
from jobs.queues import command_for

State = Literal["ready", "paused", "loading", "quarantined", "unreachable", "no_worker"]


@dataclass(frozen=True, slots=True)
class Needed:
    """A model, the queue whose workers serve it, and the kind of its engine."""

    name: str
    queue: str
    engine: EngineKind


@dataclass(frozen=True, slots=True)
class Serving:
    """The state of a model, how many live workers serve it, and what is being loaded for it.

    `of_queue` counts the workers of its queue; `embeds`: its engine is one for embeddings or re-ranking.
    """

    state: State
    queue: str
    workers: int
    loading: Loading | None = None
    of_queue: int = 0
    embeds: bool = False


def states(session: Session, models: Iterable[Needed]) -> dict[str, Serving]:
    """Return the state of each of these models by its name. Names are no aliases."""
    present = workers.present(session)
    ready = [worker for worker in present if worker.state == "ready"]
    paused = pauses.current_pauses(session).of(Scope.MODEL)
    quarantined = {row.model for row in quarantine.all_quarantines(session)}
    states_by_name: dict[str, Serving] = {}
    for model in models:
        here = [worker for worker in ready if model.queue in worker.queues]
        count = sum(model.name in worker.models for worker in here)
        loading = workers.loading(present, model.queue, model.name)
        conditions: tuple[tuple[State, bool], ...] = (
            ("paused", model.name in paused),
            ("loading", loading is not None),
            ("ready", count > 0),
            ("quarantined", model.name in quarantined),
            ("unreachable", model.engine is EngineKind.HTTP and bool(here)),
        )
        state: State = next((state for state, holds in conditions if holds), "no_worker")
        states_by_name[model.name] = Serving(
            state,
            model.queue,
            count,
            loading if state == "loading" else None,
            of_queue=len(here),
            embeds=model.engine.embeds,
        )
    return states_by_name


_WHY: dict[State, str] = {
    "paused": "the operator has paused it",
    "quarantined": "its engine died too often; the operator can start it again",
    "unreachable": "its server does not answer, or does not list it",
}


def reason_not_served(serving: Serving) -> str | None:
    """Return why a model is not served, in words; None for one that is."""
    if serving.state == "ready":
        return None
    if serving.loading:
        return f"a worker is loading it ({serving.loading.phase})"
    remedy = "`nightmill doctor` on the host of one says why" if serving.of_queue else _start(serving)
    return _WHY.get(serving.state, f"no live worker of {serving.queue} serves it: {remedy}")


def _start(serving: Serving) -> str:
    return f"`nightmill up` starts one, and so does `{command_for(serving.queue, embeds=serving.embeds)}`"
