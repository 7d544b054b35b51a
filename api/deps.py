"""The context of a call: its caller, and the services that routes use."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from api.ttl_cache import Trusted
from jobs.db.engine import Database
from jobs.errors import Unavailable
from jobs.fleet.models_file import Models, ModelsFileError, Registry
from jobs.inference.client import InferenceClient
from jobs.ledger import audit
from jobs.platform.locks import Locks
from jobs.platform.storage import Storage
from jobs.settings import Settings
from jobs.timings import Timings
from jobs.usage.stored_bytes import Arriving


@dataclass(frozen=True, slots=True)
class Caller:
    """The key of a request, and the project whose rows it may see."""

    key_id: str
    project_id: str


@dataclass(slots=True)
class Services:
    """The collaborators of this process, built once in `api.app`."""

    config: Settings
    db: Database
    storage: Storage
    models: Models
    inference: InferenceClient
    queue_for_model: Trusted[str]  # by model: the queue whose live workers serve it
    timings: Timings
    arriving: Arriving = field(default_factory=Arriving)
    changing: Locks = field(default_factory=Locks)  # locks of conversations
    stopping: threading.Event = field(default_factory=threading.Event)

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
    """An authenticated call."""

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
    def storage(self) -> Storage:
        return self.services.storage

    @property
    def project_id(self) -> str:
        return self.caller.project_id

    @property
    def actor(self) -> str:
        return f"key:{self.caller.key_id}"

    def in_one_write(self, work: Callable[[Session], object]) -> None:
        """Run `work` in a transaction of its own."""
        with self.db.write() as session:
            work(session)

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


def services_of(request: Request) -> Services:
    """Return the collaborators of this process."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


async def _call(request: Request) -> CallContext:
    """Return the context of the request. It is a coroutine because FastAPI runs plain functions in a thread each."""
    return CallContext(services_of(request), request.state.caller, request.state.request_id)


#: Each route below /v1 takes one. The middleware has authenticated the request.
Call = Annotated[CallContext, Depends(_call)]
