"""Steer the deployment with an admin key: workers, quarantined engines, pauses, and what runs in spite of them."""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, Field

from api.deps import Admin
from api.http.bodies import Body, resource
from jobs.fleet import steering
from jobs.fleet.steering import Kind
from jobs.registry import models as tuned_models

router = resource("Operation", area="deployment", admin=True)

_NAME_LENGTH = 255
KindOf = Annotated[Kind, Path(description="The kind of what is paused.")]
NameOf = Annotated[str, Path(max_length=_NAME_LENGTH, description="Its name, as in a pause.")]


class LoadingEngine(BaseModel):
    """A model that a worker is loading; `model` is empty while its process is still starting."""

    model: str
    phase: str
    since: float


class WorkerObject(BaseModel):
    """A live worker process. `running` counts its claims, `other_work` interactive requests, removals, deliveries."""

    id: str
    object: Literal["worker"] = "worker"
    pool: str
    host: str
    pid: int
    state: str
    loading: list[LoadingEngine]
    queues: list[str]
    models: list[str]
    running: int
    other_work: int
    slots: int
    engine_restarts: int


class QuarantineObject(BaseModel):
    """An engine that died too often on some devices. `lines` is the end of its log, `suspects` what was in flight."""

    object: Literal["quarantine"] = "quarantine"
    model: str
    host_devices: str
    deaths: int
    error: str
    suspects: list[str]
    lines: list[str]
    trial: str | None
    tries: int
    created_at: float
    until: float
    description: str


class PauseObject(BaseModel):
    """A pause. That of a model holds its aliases too."""

    object: Literal["pause"] = "pause"
    kind: str
    name: str
    aliases: list[str] = []
    reason: str | None = None


class WorkerList(BaseModel):
    object: Literal["list"] = "list"
    data: list[WorkerObject]


class QuarantineList(BaseModel):
    object: Literal["list"] = "list"
    data: list[QuarantineObject]


class PauseList(BaseModel):
    object: Literal["list"] = "list"
    data: list[PauseObject]


class NewPause(Body):
    """The queue, model, project or worker to pause."""

    kind: Kind
    name: str = Field(
        min_length=1,
        max_length=_NAME_LENGTH,
        description="A queue such as `gpu.generate`, a model or its alias, the name of a project, or a worker's id.",
    )


class PauseChange(BaseModel):
    """The result of a request to pause or resume.

    `names` are the names that `name` stands for: a model and its aliases, or the id of a project. `changed` is false
    where nothing was to be done. `freed` counts the quarantines that were ended.
    """

    object: Literal["pause.change"] = "pause.change"
    kind: Kind
    name: str
    paused: bool
    names: list[str]
    changed: bool
    freed: int


class Remaining(BaseModel):
    """The work that still runs there.

    Nothing runs any more when `running` and `other_work` are 0 and each of the workers in `heartbeats`, if it is still
    there, has sent 3 heartbeats since the pause.
    """

    object: Literal["pause.remaining"] = "pause.remaining"
    kind: Kind
    name: str
    running: int
    other_work: int
    heartbeats: dict[str, int]


class ProbeDecision(Body):
    """The decision about a tuned model that failed its probe."""

    accept: bool = Field(
        default=False, description="Serve it whatever the probe says. Otherwise it is probed again when it is loaded."
    )


class ModelProbe(BaseModel):
    """The state of a tuned model's probe."""

    object: Literal["model.probe"] = "model.probe"
    model: str
    state: str
    accepted: bool


@router.post("/models/{model:path}/probe")
def decide_model_probe(call: Admin, model: NameOf, body: ProbeDecision) -> ModelProbe:
    """Probe a tuned model again, or serve it whatever its probe says. This takes an admin key."""
    with call.db.write() as session:
        tuned = tuned_models.decide_probe(session, model, accept=body.accept, actor=call.actor)
        return ModelProbe(model=tuned.name, state=tuned.state, accepted=body.accept)


@router.get("/workers")
def list_workers(call: Admin) -> WorkerList:
    """List the live workers. This takes an admin key."""
    with call.db.read() as session:
        return WorkerList(data=[WorkerObject(**worker) for worker in steering.live_workers(session)])


@router.get("/quarantines")
def list_quarantines(call: Admin) -> QuarantineList:
    """List the engines that died too often, with the ends of their logs. This takes an admin key."""
    with call.db.read() as session:
        return QuarantineList(data=[QuarantineObject(**row) for row in steering.describe_quarantines(session)])


@router.get("/pauses")
def list_pauses(call: Admin) -> PauseList:
    """List what is paused. This takes an admin key."""
    aliases = call.services.registry().aliases
    with call.db.read() as session:
        return PauseList(data=[PauseObject(**entry) for entry in steering.describe_pauses(session, aliases)])


@router.post("/pauses")
def create_pause(call: Admin, body: NewPause) -> PauseChange:
    """Start no new work of a queue, model, project or worker. Running work goes on, and jobs are still accepted.

    Pausing twice is no error. This takes an admin key.
    """
    registry = call.services.registry
    with call.db.write() as session:
        change = steering.pause(session, registry, body.kind, body.name, actor=call.actor)
    return _show_change(change, body.kind, body.name, paused=True)


@router.get("/pauses/{kind}/{target:path}")
def retrieve_remaining(call: Admin, kind: KindOf, target: NameOf) -> Remaining:
    """Return what still runs of a queue, model, project or worker, paused or not. This takes an admin key."""
    with call.db.read() as session:
        counts: dict[str, Any] = steering.remaining(session, call.services.registry, kind, target)
    return Remaining(kind=kind, name=target, **counts)


@router.delete("/pauses/{kind}/{target:path}")
def delete_pause(call: Admin, kind: KindOf, target: NameOf) -> PauseChange:
    """Start work again that was paused; of a model also end its quarantines. This takes an admin key."""
    registry = call.services.registry
    with call.db.write() as session:
        change = steering.resume(session, registry, kind, target, actor=call.actor)
    return _show_change(change, kind, target, paused=False)


def _show_change(change: steering.Change, kind: Kind, name: str, *, paused: bool) -> PauseChange:
    names, changed, freed = change.names, change.changed, change.freed
    return PauseChange(kind=kind, name=name, paused=paused, names=names, changed=changed, freed=freed)
