"""Health, for anyone and without facts about projects. The metrics are for this host or a key of their own."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from api.deps import services_of
from api.errors import ErrorBody
from api.health.metrics import Exposition
from api.health.readiness import BrokerWatch, Watch
from jobs.errors import DatabaseBusy

router = APIRouter(tags=["Health"])


@dataclass(frozen=True, slots=True)
class Health:
    """The collaborators of these routes, built once in `api.app`."""

    exposition: Exposition
    broker: BrokerWatch
    watch: Watch


class Alive(BaseModel):
    status: Literal["ok"] = "ok"


class EngineLoading(BaseModel):
    """A model that a worker is loading; `model` is empty while its process is still starting."""

    queue: str
    model: str
    phase: str
    since: int


class Ready(BaseModel):
    """The state of this process: it can serve requests while its database answers, and until it is told to stop."""

    status: Literal["ready", "stopping", "unavailable"]
    database: Literal["ok", "unavailable"]


class Deployment(BaseModel):
    """The state of the deployment.

    `depth` counts the messages that no worker has claimed, by queue; `oldest_seconds` is the age of the oldest of
    them. `workers` counts live slots, by queue. `loading` lists the engines that workers are loading.
    `stuck` names the queues with work that waits, and that no live worker has taken up for a minute.
    `broker_full`: the broker has no memory left for interactive requests, which answer 503; jobs go on.
    """

    status: Literal["ready", "broker_full", "stuck", "unavailable"]
    database: Literal["ok", "unavailable"]
    depth: dict[str, int] = {}
    oldest_seconds: dict[str, float] = {}
    stuck: list[str] = []
    workers: dict[str, int] = {}
    loading: list[EngineLoading] = []
    last_heartbeat_at: float | None = None


@router.get("/livez")
async def livez() -> Alive:
    """Report that this process runs."""
    return Alive()


@router.get(
    "/readyz",
    response_model=Ready,
    responses={503: {"model": Ready, "description": "The database is unavailable, or this process stops"}},
)
def readyz(request: Request) -> JSONResponse:
    """Report whether this process can serve requests: what a load balancer asks.

    It can while its database answers, and until it is told to stop. What other processes do says nothing about this
    one: see `/statusz`.
    """
    try:
        _health_of(request).watch.check(services_of(request).db)
    except DatabaseBusy:
        return JSONResponse(
            Ready(status="unavailable", database="unavailable").model_dump(), HTTPStatus.SERVICE_UNAVAILABLE
        )
    if services_of(request).draining.is_set():
        return JSONResponse(Ready(status="stopping", database="ok").model_dump(), HTTPStatus.SERVICE_UNAVAILABLE)
    return JSONResponse(Ready(status="ready", database="ok").model_dump())


@router.get(
    "/statusz",
    response_model=Deployment,
    responses={
        503: {"model": Deployment, "description": "The database is unavailable, or waiting work is not claimed"}
    },
)
def statusz(request: Request) -> JSONResponse:
    """Report whether the deployment works: what monitoring asks. Every API process answers the same.

    An unavailable broker changes nothing at first: intake does not need it. A full one is reported with status 200:
    jobs go on.
    """
    health = _health_of(request)
    try:
        standing = health.watch.standing(services_of(request).db)
    except DatabaseBusy:
        return _answer(Deployment(status="unavailable", database="unavailable"))
    return _answer(
        Deployment(
            status="stuck" if standing.stuck else "broker_full" if health.broker.is_full() else "ready",
            database="ok",
            depth=standing.depth,
            oldest_seconds=standing.oldest,
            stuck=standing.stuck,
            workers=standing.slots,
            loading=[
                EngineLoading(queue=queue, model=loading.model, phase=loading.phase, since=int(loading.since))
                for queue, loading in standing.loading
            ],
            last_heartbeat_at=standing.last_heartbeat,
        )
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}},
        401: {"model": ErrorBody, "description": "Not the operator's key (NIGHTMILL_METRICS_KEY)"},
        404: {"model": ErrorBody, "description": "The operator has set no key, and you are on another host"},
        429: {"model": ErrorBody, "description": "Too many requests with a wrong key"},
        503: {"model": ErrorBody, "description": "The database is unavailable"},
    },
)
def metrics(request: Request) -> Response:
    """Return measurements for Prometheus. Other hosts need a key, see NIGHTMILL_METRICS_KEY."""
    return Response(_health_of(request).exposition.text(), media_type=CONTENT_TYPE_LATEST)


def _health_of(request: Request) -> Health:
    health = request.app.state.health
    assert isinstance(health, Health)
    return health


def _answer(deployment: Deployment) -> JSONResponse:
    works = deployment.status in ("ready", "broker_full")
    return JSONResponse(deployment.model_dump(), HTTPStatus.OK if works else HTTPStatus.SERVICE_UNAVAILABLE)
