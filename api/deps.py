"""What an endpoint is handed: who calls, and what serves the call."""

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
    """The key that a request came with, and the project whose rows it may see."""

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
    queue_for_model: Trusted[str]  # queues that live workers take requests from
    timings: Timings
    arriving: Arriving = field(default_factory=Arriving)
    changing: Locks = field(default_factory=Locks)  # conversations
    stopping: threading.Event = field(default_factory=threading.Event)

    def registry(self) -> Registry:
        """The models as their file describes them now, or did when it was right. Raises Unavailable: it never was."""
        try:
            return self.models.now()
        except ModelsFileError as error:
            raise Unavailable("The models file cannot be read: `nightmill doctor` says why.") from error


@dataclass(frozen=True, slots=True)
class CallContext:
    """One authenticated call."""

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
        """Run it in a transaction of its own."""
        with self.db.write() as session:
            work(session)

    def record(self, session: Session, action: str, target: str, details: dict[str, Any] | None = None) -> None:
        """The audit row of a mutating call, in its transaction."""
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
    """The collaborators, from any request."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


async def _call(request: Request) -> CallContext:
    """Not a plain function: those are run in a thread each, and this only looks things up."""
    return CallContext(services_of(request), request.state.caller, request.state.request_id)


#: Every route below /v1 takes one; the middleware has let nobody through without a key.
Call = Annotated[CallContext, Depends(_call)]
