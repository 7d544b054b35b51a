"""The context of a call: its caller, and the services that routes use."""

import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request
from fastapi.requests import HTTPConnection
from sqlalchemy.orm import Session

from api.computations import Computations
from api.key_use import KeyUse
from api.request_recorder import RequestRecorder
from api.shadow_tasks import ShadowTasks
from api.ttl_cache import Trusted
from api.wrong_keys import WrongKeys
from jobs.db.engine import Database
from jobs.errors import Conflict, MissingPermission, PermissionDenied, Unavailable
from jobs.fleet.access import Work
from jobs.fleet.models_file import Models, ModelsFileError, Registry
from jobs.inference.client import InferenceClient
from jobs.inference.rate_limiter import Rates
from jobs.ledger import audit, ledger
from jobs.ledger.feed import FeedBounds
from jobs.ledger.tables import Job
from jobs.platform.locks import Locks
from jobs.platform.storage import Storage
from jobs.registry.aliases import AliasRouting
from jobs.security.permissions import permission_for
from jobs.security.project_rules import ProjectRules
from jobs.settings import Settings
from jobs.timings import Timings
from jobs.usage.budgets import LimitedProjects
from jobs.usage.stored_bytes import Arriving


@dataclass(frozen=True, slots=True)
class Caller:
    """The key of a request, the project whose rows it may see (none with an admin key), and what it permits."""

    key_id: str
    project_id: str
    is_admin: bool = False
    permissions: frozenset[str] = frozenset()


class ModelTarget(NamedTuple):
    """The way of a project's requests for a name: its model, the queue whose live workers serve it, the rate limits.

    `fallbacks` are those of the alias that come after the model.
    """

    model: str
    queue: str
    rates: Rates | None
    fallbacks: tuple[str, ...] = ()


@dataclass(slots=True)
class Services:
    """The collaborators of this process, built once in `api.app`."""

    config: Settings
    db: Database
    storage: Storage
    models: Models
    inference: InferenceClient
    targets: Trusted[ModelTarget]  # by model: where live workers serve it
    alias_routings: Trusted[AliasRouting | None]  # by project and name; None where the name is no alias
    rules: Trusted[ProjectRules]  # by project
    timings: Timings
    wrong_keys: WrongKeys
    key_use: KeyUse
    requests: RequestRecorder
    computations: Computations
    feed_bounds: Trusted[FeedBounds]  # by key: of the feed of its project
    shadow_tasks: ShadowTasks = field(default_factory=ShadowTasks)
    limited_projects: LimitedProjects = field(default_factory=LimitedProjects)
    arriving: Arriving = field(default_factory=Arriving)
    changing: Locks = field(default_factory=Locks)  # locks of conversations
    draining: threading.Event = field(default_factory=threading.Event)  # this process ends: take nothing that lasts
    stopping: threading.Event = field(default_factory=threading.Event)  # end what is still being answered

    def registry(self) -> Registry:
        """Return the models of the models file as it is now, or as it was when it was last valid.

        Raises: Unavailable, if it never was.
        """
        try:
            return self.models.now()
        except ModelsFileError as error:
            raise Unavailable("The models file cannot be read: `nightmill doctor` says why.") from error


@dataclass(frozen=True, slots=True)
class CallContext:
    """An authenticated call, with the permission that its route requires."""

    services: Services
    caller: Caller
    request_id: str
    permission: str = ""

    @property
    def config(self) -> Settings:
        return self.services.config

    @property
    def db(self) -> Database:
        return self.services.db

    @property
    def storage(self) -> Storage:
        return self.services.storage

    @property
    def project_id(self) -> str:
        return self.caller.project_id

    @property
    def actor(self) -> str:
        return audit.actor_of(self.caller.key_id)

    def work(self, model: str, endpoint: str) -> Work:
        """Return the piece of work in which this call asks a model at an endpoint."""
        return Work(self.project_id, self.caller.key_id, model, endpoint)

    def run_in_transaction(self, work: Callable[[Session], object]) -> None:
        """Run `work` in a transaction of its own."""
        with self.db.write() as session:
            work(session)

    def cancel(self, session: Session, job: Job, action: str, refusal: Callable[[Job], str]) -> Job:
        """Cancel a job, and record the action where that changed the job's state.

        Raises Conflict, with the text that `refusal` makes of a job that has ended or is ending.
        """
        before = job.state
        try:
            job = ledger.cancel(session, job.id, actor=self.actor)
        except Conflict as error:
            raise Conflict(refusal(job), code="invalid_state") from error
        if job.state != before:
            self.record(session, action, job.id)
        return job

    def record(self, session: Session, action: str, target: str, details: dict[str, Any] | None = None) -> None:
        """Add the audit row of a mutating call to its transaction."""
        audit.record(
            session,
            actor=self.actor,
            action=action,
            target=target,
            project_id=self.project_id,
            request_id=self.request_id,
            details=details,
        )


def services_of(request: HTTPConnection) -> Services:
    """Return the collaborators of this process."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


@dataclass(frozen=True, slots=True)
class AdminContext:
    """An authenticated call with an admin key, which administers the organization and steers the deployment."""

    services: Services
    caller: Caller
    request_id: str

    @property
    def config(self) -> Settings:
        return self.services.config

    @property
    def db(self) -> Database:
        return self.services.db

    @property
    def actor(self) -> str:
        return audit.actor_of(self.caller.key_id)

    def record(
        self,
        session: Session,
        action: str,
        target: str,
        details: dict[str, Any] | None = None,
        *,
        project_id: str | None = None,
    ) -> None:
        """Add the audit row of a mutating call to its transaction; `project_id` is the project that it concerns.

        `details` never hold a body as it was sent: each action names the fields that it records.
        """
        audit.record(
            session,
            actor=self.actor,
            action=action,
            target=target,
            project_id=project_id,
            request_id=self.request_id,
            details=details,
        )


def requires(area: str) -> Callable[[HTTPConnection], Awaitable[None]]:
    """Return the dependency that notes the permission that a request of this area requires.

    `call_of` and `admin_of` check it. They fail where a route names no area.
    """
    permissions = {method: permission_for(area, method) for method in ("GET", "POST", "DELETE")}

    async def note_permission(request: HTTPConnection) -> None:
        request.state.permission = permissions[request.scope.get("method", "POST")]  # what opens a WebSocket posts

    note_permission.__dict__["area"] = area  # for the tests of all routes
    return note_permission


async def call_of(request: HTTPConnection) -> CallContext:
    """Return the context of a request, or of a WebSocket.

    It is a coroutine because FastAPI runs plain functions in a thread each.

    Raises: PermissionDenied, for an admin key, and for a key without the permission that the route requires.
    """
    caller: Caller = request.state.caller
    if caller.is_admin:
        message = "An admin key administers the organization and opens no project. Use a key of a project."
        raise PermissionDenied(message, code="admin_key_not_allowed")
    permission = _check_permission(request, caller)
    return CallContext(services_of(request), caller, request.state.request_id, permission)


async def admin_of(request: Request) -> AdminContext:
    """Return the context of a request with an admin key.

    Raises: PermissionDenied, for a key of a project, and for a key without the permission that the route requires.
    """
    caller: Caller = request.state.caller
    if not caller.is_admin:
        message = "This administers the organization and takes an admin key: `nightmill keys create --admin`."
        raise PermissionDenied(message, code="admin_key_required")
    _check_permission(request, caller)
    return AdminContext(services_of(request), caller, request.state.request_id)


def _check_permission(request: HTTPConnection, caller: Caller) -> str:
    permission: str = request.state.permission
    if permission not in caller.permissions:
        raise MissingPermission(permission)
    return permission


#: Each route below /v1 takes one of the two. The middleware has authenticated the request.
Call = Annotated[CallContext, Depends(call_of)]
Admin = Annotated[AdminContext, Depends(admin_of)]
