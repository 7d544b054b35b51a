"""Monitors of drift: created with their baseline, listed and deleted; their checks."""

from typing import Any

from fastapi.responses import Response
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, cursor_details, deletion_details, find, page
from api.http.space import check_not_full, count_if_due
from api.monitoring.schemas import (
    CreateBaseline,
    CreateDriftCheck,
    CreateDriftMonitor,
    DriftCheckObject,
    DriftMonitorDeleted,
    DriftMonitorObject,
    show_check,
    show_monitor,
)
from jobs.clock import now
from jobs.errors import InvalidRequest, NotFound
from jobs.fleet import access, routing
from jobs.ids import new_id
from jobs.ledger.tables import Job
from jobs.monitoring import monitors
from jobs.monitoring.tables import DriftCheck, DriftMonitor
from jobs.platform.storage import remove_objects
from jobs.requests.endpoints import EMBEDDINGS
from jobs.security.tables import Project

router = resource("Drift monitors", area="monitoring")


@router.post("/drift_monitors", response_model=DriftMonitorObject)
def create_drift_monitor(call: Call, once: Idempotent, body: CreateDriftMonitor) -> Response:
    """Create a monitor, whose baseline is sampled and embedded after the answer."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed

    def make(session: Session) -> DriftMonitorObject:
        check_not_full(session, call)
        session.get_one(Project, call.project_id, with_for_update={"key_share": True})  # counts monitors alone
        _check_count(session, call)
        monitor = DriftMonitor(
            id=new_id(monitors.MONITOR_PREFIX),
            project_id=call.project_id,
            name=body.name,
            source=_own_fields(body.source),
            window_seconds=body.window_seconds,
            sample=body.sample,
            embedding_model=_find_model(session, call, body.embedding_model),
            created_at=now(),
        )
        if body.metadata is not None:  # JSON null is not NULL
            monitor.metadata_ = body.metadata
        source = monitors.parse_source(_own_fields(body.baseline or body.source))
        param = "source.file_id" if body.baseline is None else "baseline.file_id"
        job = monitors.submit_baseline(session, monitor, source, param=param, **_columns(call, once.key))
        session.add(monitor)
        call.record(session, "drift_monitor.create", monitor.id)
        return show_monitor(monitor, job)

    count_if_due(call)
    return once.run(fields, make)


@router.get("/drift_monitors")
def list_drift_monitors(
    call: Call, after: After = None, limit: Limit20 = 20, order: Order = "desc"
) -> Page[DriftMonitorObject]:
    """List the project's monitors of drift."""
    with call.db.read() as session:
        deletions = deletion_details(call, "drift_monitor.delete")
        statement = _monitors_of(call)
        rows, more = find(session, statement, DriftMonitor, after=after, limit=limit, order=order, deletions=deletions)
        jobs = monitors.jobs_by_id(session, [row.baseline_id for row in rows])
    return page(rows, more, lambda row: show_monitor(row, jobs[row.baseline_id]))


@router.get("/drift_monitors/{monitor_id}")
def retrieve_drift_monitor(call: Call, monitor_id: str) -> DriftMonitorObject:
    """Return one monitor, with the state of its baseline."""
    with call.db.read() as session:
        monitor = monitors.find(session, call.project_id, monitor_id)
        return show_monitor(monitor, session.get_one(Job, monitor.baseline_id))


@router.delete("/drift_monitors/{monitor_id}")
def delete_drift_monitor(call: Call, monitor_id: str) -> DriftMonitorDeleted:
    """Remove a monitor with its baseline and its checks. Checks that run are cancelled."""
    with call.db.write() as session:
        monitor = monitors.find(session, call.project_id, monitor_id, lock=True)
        objects = monitors.remove(session, monitor, actor=call.actor)
        call.record(session, "drift_monitor.delete", monitor.id, cursor_details(monitor))
    remove_objects(call.storage, objects)
    return DriftMonitorDeleted(id=monitor.id)


@router.post("/drift_monitors/{monitor_id}/baseline", response_model=DriftMonitorObject)
def create_baseline(call: Call, once: Idempotent, monitor_id: str, body: CreateBaseline) -> Response:
    """Make another baseline, with which later checks compare: after a new model was promoted, for example."""

    def make(session: Session) -> DriftMonitorObject:
        check_not_full(session, call)
        monitor = monitors.find(session, call.project_id, monitor_id, lock=True)
        source = None if body.source is None else monitors.parse_source(_own_fields(body.source))
        job = monitors.submit_baseline(session, monitor, source, **_columns(call, once.key))
        call.record(session, "drift_monitor.baseline", monitor.id, {"job": job.id})
        return show_monitor(monitor, job)

    count_if_due(call)
    return once.run(body.fields(), make)


@router.post("/drift_monitors/{monitor_id}/checks", response_model=DriftCheckObject)
def create_drift_check(call: Call, once: Idempotent, monitor_id: str, body: CreateDriftCheck) -> Response:
    """Queue a check. It waits for a baseline that is being made."""

    def make(session: Session) -> DriftCheckObject:
        check_not_full(session, call)
        monitor = monitors.find(session, call.project_id, monitor_id, lock=True)
        source = None if body.source is None else monitors.parse_source(_own_fields(body.source))
        job = monitors.submit_check(session, monitor, source, **_columns(call, once.key))
        call.record(session, "drift_monitor.check", monitor.id, {"job": job.id})
        return show_check(session.get_one(DriftCheck, job.id), job)

    count_if_due(call)
    return once.run(body.fields(), make)


@router.get("/drift_monitors/{monitor_id}/checks")
def list_drift_checks(
    call: Call, monitor_id: str, after: After = None, limit: Limit20 = 20, order: Order = "desc"
) -> Page[DriftCheckObject]:
    """List the checks of a monitor: how the distances went on."""
    with call.db.read() as session:
        own = select(DriftCheck).where(DriftCheck.monitor_id == monitors.find(session, call.project_id, monitor_id).id)
        rows, more = find(session, own, DriftCheck, after=after, limit=limit, order=order)
        jobs = monitors.jobs_by_id(session, [row.id for row in rows])
    return page(rows, more, lambda row: show_check(row, jobs[row.id]))


@router.get("/drift_monitors/{monitor_id}/checks/{check_id}")
def retrieve_drift_check(call: Call, monitor_id: str, check_id: str) -> DriftCheckObject:
    """Return one check, with the distance and the limit of each feature."""
    with call.db.read() as session:
        monitor = monitors.find(session, call.project_id, monitor_id)
        check = session.scalar(select(DriftCheck).where(DriftCheck.monitor_id == monitor.id, DriftCheck.id == check_id))
        if check is None:
            raise NotFound(f"No check found with id '{clip(check_id)}'.", param="check_id")
        return show_check(check, session.get_one(Job, check.id))


def _monitors_of(call: CallContext) -> Select[DriftMonitor]:
    return select(DriftMonitor).where(DriftMonitor.project_id == call.project_id)


def _check_count(session: Session, call: CallContext) -> None:
    own = _monitors_of(call).with_only_columns(func.count())
    if (session.scalar(own) or 0) >= monitors.MAX_MONITORS:
        message = f"A project has at most {monitors.MAX_MONITORS} drift monitors. Delete some first."
        raise InvalidRequest(message, code="too_many_drift_monitors")


def _find_model(session: Session, call: CallContext, name: str | None) -> str:
    """Return the name of the embedding model. Raises InvalidRequest for one that no worker serves."""
    registry, param = call.services.registry(), "embedding_model"
    name = name or registry.embedder(call.config.embedding_model)
    if name is None:
        raise InvalidRequest("This deployment has no model for embeddings.", param=param, code="model_not_found")
    try:
        access.resolve(session, call.config, registry, call.work(name, EMBEDDINGS))
    except routing.NotYet:  # an endpoint may still list it
        pass
    except routing.NotServed as refused:
        raise InvalidRequest(f"Invalid '{param}': {refused}", param=param, code=refused.code) from None
    return name


def _own_fields(source: Body) -> dict[str, Any]:
    return source.model_dump(exclude_none=True)


def _columns(call: CallContext, key: str | None) -> dict[str, Any]:
    return {"actor": call.actor, "idempotency_key": key, "request_id": call.request_id}
