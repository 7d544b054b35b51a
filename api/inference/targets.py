"""Find where workers take an interactive request: its alias, the model that was drawn, the queue, the rate limits.

    work ─▶ alias, if it names one ─▶ `access.draw` ─▶ permitted, served, not paused, loaded ─▶ queue and rates

The answers are cached for seconds: a request follows a move of its alias, or a pause, as late as that.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from sqlalchemy.orm import Session

from api.deps import CallContext, ModelTarget
from api.errors import clip
from api.shares import run_unshared
from jobs.clock import now
from jobs.errors import (
    InvalidRequest,
    ModelLoading,
    NightmillError,
    NotFound,
    NoWorker,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from jobs.fleet import access, routing, workers
from jobs.fleet.access import Work
from jobs.fleet.routing import Route
from jobs.inference.client import WorkerCheck
from jobs.inference.rate_limiter import Rates, rates_of
from jobs.queues import Queue
from jobs.registry.aliases import AliasRouting
from jobs.registry.models import base_model_of
from jobs.security.project_rules import ProjectRules, rules_of


def work_of(call: CallContext, url: str, body: Mapping[str, Any]) -> Work:
    """Return the piece of work of a request, whose subject is the end user that it names, or else its key."""
    users = (body.get("safety_identifier"), body.get("user"))
    subject = next((user for user in users if isinstance(user, str) and user), call.caller.key_id)
    return replace(call.work(body["model"], url), subject=subject)


def route_of(session: Session, call: CallContext, work: Work) -> Route | None:
    """Return which workers do the work of a request, None while that is not known yet.

    Raises NotFound, InvalidRequest, PermissionDenied.
    """
    try:
        return access.resolve(session, call.config, call.services.registry(), work)
    except routing.NotYet:
        return None
    except routing.NotServed as refusal:
        raise _refusal(refusal, work.model) from None


async def find_alias(call: CallContext, work: Work) -> AliasRouting | None:
    """Return the routing of the alias that a piece of work names; None where it names a model."""
    key = _digest(work.project_id, work.model)
    return await call.services.alias_routings.get(key, partial(_find_alias, call, work))


async def find_target(call: CallContext, work: Work) -> ModelTarget:
    """Return where workers take work that has been drawn. Raises the errors of `_live_target`."""
    key = _digest(work.project_id, work.key_id, work.endpoint, work.model, work.fallbacks)
    return await call.services.targets.get(key, partial(_live_target, call, work))


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(msgspec.json.encode(parts)).digest()


def _find_alias(call: CallContext, work: Work) -> AliasRouting | None:
    with call.db.read() as session:
        return access.routing_of_alias(session, call.services.registry(), work.model, work.project_id)


def _live_target(call: CallContext, work: Work) -> ModelTarget:
    """Look the queue up, and check that a worker serves it. Raises NoWorker and Unavailable too."""
    with call.db.read() as session:
        route = route_of(session, call, work)
        if route is None:
            raise NoWorker
        queue, model = route.queue, route.model
        if routing.is_paused(session, queue, model, call.project_id):
            raise Unavailable("The operator has paused this model.", code="paused")
        _check_loaded(session, call, queue, model)
        if not routing.is_served(session, call.services.registry(), queue, model):
            raise _no_worker(queue, model)
        return ModelTarget(model, queue, _rates_of(session, call, model), route.fallbacks)


def _rates_of(session: Session, call: CallContext, name: str) -> Rates | None:
    """Return the rate limits of the call's project for the model of a name."""
    registry = call.services.registry()
    model = access.model_of_name(session, registry, name, call.project_id)
    served = routing.target_of(model, routing.live_aliases(session, registry))
    return rates_of(session, call.project_id, served)


def read_rates(call: CallContext, model: str) -> Rates | None:
    """Return the rate limits of the call's project for the model of a name."""
    with call.db.read() as session:
        return _rates_of(session, call, model)


def _refusal(refusal: routing.NotServed, model: str) -> NightmillError:
    if refusal.code == "model_not_found":
        message = f"The model `{clip(model)}` does not exist. {refusal.others}"
        return NotFound(message, param="model", code=refusal.code)
    if refusal.code in access.IDENTITY_CODES:
        return Unauthenticated(str(refusal), code=refusal.code)
    kind = PermissionDenied if isinstance(refusal, access.AccessDenied) else InvalidRequest
    return kind(str(refusal), param="model", code=refusal.code)


def _is_served(call: CallContext, queue: str, model: str) -> bool:
    """Return True while a queued request may still be taken. Raises ModelLoading, NoWorker."""
    with call.db.read() as session:
        if not routing.is_served(session, call.services.registry(), queue, model):
            _check_loaded(session, call, queue, model)
            raise _no_worker(queue, model)
    return True


def _check_loaded(session: Session, call: CallContext, queue: str, model: str) -> None:
    """Raise ModelLoading while the only engines with the model are loading."""
    base = base_model_of(model)
    name = call.services.registry().target(base, ()) or base
    loading = workers.loading(workers.present(session), queue, name)
    if loading is not None:
        progress = f"({loading.phase}), {max(now() - loading.since, 0.0):.0f} s so far"
        raise ModelLoading(f"The model '{clip(model)}' is loading {progress}. Ask again in a moment.")


def _no_worker(queue: str, model: str) -> NoWorker:
    if queue == Queue.TUNED:
        start = "start one with `nightmill up --with tuned` or `python -m workers tuned`"
        return NoWorker(f"No process serves models with weights of their own, such as '{clip(model)}': {start}.")
    return NoWorker(f"No live worker serves the model '{clip(model)}' now.")


def worker_check(call: CallContext, queue: str, model: str) -> WorkerCheck:
    """Return the check of whether a live worker may take a request for a model."""

    async def is_served() -> bool:
        return await run_unshared(_is_served, call, queue, model)

    return is_served


async def rules_of_project(call: CallContext) -> ProjectRules:
    """Return the rules of the requests of the call's project."""
    return await call.services.rules.get(call.project_id.encode(), partial(_read_rules, call))


def _read_rules(call: CallContext) -> ProjectRules:
    with call.db.read() as session:
        return rules_of(session, call.project_id)
