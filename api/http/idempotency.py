"""`Idempotency-Key`: a create that is sent again gets the first answer again, for a week.

    JSON      one transaction: look the key up ─▶ make ─▶ store the answer        two at once: the second one replays
    bytes     lease the key ─▶ receive, heartbeat ─▶ make and store, if leased    two at once: 409, the SDK retries
    answers   the same while a model generates: `api.inference.stored_answers`

A request is compared by method, path, the fields as sent and the SHA-256 of file parts, because a multipart boundary
changes with every retry. Another request under the same key is 422. A request that failed stores nothing. A lease whose
heartbeat stopped (its process was killed) is taken over by the next request.
"""

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from fastapi import Depends, Header, Request
from fastapi.responses import Response
from pydantic import BaseModel
from sqlalchemy import and_, delete, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.deps import Call
from api.shares import run_in_threadpool, run_unshared
from jobs.clock import now
from jobs.db.engine import Database, execute_and_count
from jobs.errors import DatabaseBusy, IdempotencyMismatch, InFlight
from jobs.ids import new_id
from jobs.security.tables import Idempotency
from jobs.settings import Settings

Make = Callable[[Session], BaseModel]

_KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="A repeated create with the same key and body gets the first answer again.",
    ),
]


class Once:
    """The idempotency key of one create; without a key every request is executed."""

    def __init__(self, db: Database, config: Settings, primary_key: tuple[str, str, str] | None, request: str) -> None:
        self.db = db
        self.config = config
        self.primary_key = primary_key  # project, route, key: the row's primary key
        self.request = request  # method and path

    @property
    def key(self) -> str | None:
        return self.primary_key[2] if self.primary_key else None

    def replay(self, fields: Mapping[str, Any]) -> Response | None:
        """Return the stored answer, if there is one. Called before slow checks."""
        if self.primary_key is None:
            return None
        with self.db.read() as session:
            stored = self._find_row(session)
        return self._answer(stored, self.digest(fields)) if stored else None

    def run(self, fields: Mapping[str, Any], make: Make, status: int = 200) -> Response:
        """Make the object in one transaction, or replay. The result of `make` is the answer."""
        digest = self.digest(fields) if self.primary_key else ""  # of megabytes perhaps, so outside the transaction
        try:
            with self.db.write() as session:
                stored = self._find_row(session)
                if stored is not None:
                    return self._answer(stored, digest)
                text = make(session).model_dump_json()
                self._keep(session, digest, text, status=status)
        except IntegrityError:  # PostgreSQL: another request committed the same key, and our job was rolled back
            replayed = self.replay(fields)
            if replayed is None:
                raise
            return replayed
        return _json(text, status)

    @asynccontextmanager
    async def hold_lease(self) -> AsyncIterator["Lease"]:
        """Hold the key while bytes arrive.

        Raises: InFlight, while another request holds it.
        """
        lease = Lease(self)
        await run_in_threadpool(lease.take)
        try:
            yield lease
        except BaseException:  # the request failed or was cancelled: free the key
            with anyio.CancelScope(shield=True), suppress(DatabaseBusy):  # otherwise the lease expires
                await run_in_threadpool(lease.drop)
            raise

    def digest(self, fields: Mapping[str, Any]) -> str:
        text = json.dumps([self.request, fields], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _find_row(self, session: Session, *, lock: bool = False) -> Idempotency | None:
        if self.primary_key is None:
            return None
        row = session.get(Idempotency, self.primary_key, with_for_update=lock or None)
        return row if row and now() - row.created_at < self.config.idempotency_seconds else None

    def _keep(
        self, session: Session, digest: str | None, text: str | None, owner: str | None = None, *, status: int = 200
    ) -> None:
        if self.primary_key is None:
            return
        project_id, route, key = self.primary_key
        old = Idempotency.created_at <= now() - self.config.idempotency_seconds
        session.execute(delete(Idempotency).where(_at(self.primary_key), old))  # not one that was committed just now
        row = Idempotency(project_id=project_id, route=route, key=key, digest=digest, body=text, owner=owner)
        row.status = status if text is not None else 0
        row.created_at = row.heartbeat_at = now()
        session.add(row)
        session.flush()

    @staticmethod
    def _answer(stored: Idempotency, digest: str) -> Response:
        if stored.status == 0 or stored.body is None:
            raise InFlight
        if stored.digest != digest:
            raise IdempotencyMismatch
        return _json(stored.body, stored.status, replayed=True)


@dataclass(slots=True)
class Lease:
    """A key that one request holds. `stored` is an earlier answer; with it the bytes are only compared."""

    once: Once
    stored: Idempotency | None = None
    owner: str = ""
    _sent: float = 0.0

    def take(self) -> None:
        if self.once.primary_key is None:
            return
        self.owner, self._sent = new_id("own_"), time.monotonic()
        try:
            with self.once.db.write() as session:
                self._take(session)
        except IntegrityError as error:
            raise InFlight from error

    def _take(self, session: Session) -> None:
        row = self.once._find_row(session, lock=True)
        if row is None:
            self.once._keep(session, None, None, self.owner)
        elif row.status:
            self.stored = row
        elif abs(now() - row.heartbeat_at) < self.once.config.lease_seconds:
            raise InFlight
        else:
            row.owner, row.heartbeat_at = self.owner, now()

    async def heartbeat(self) -> None:
        """Renew the lease while bytes arrive.

        Raises: InFlight, if the key was taken over.
        """
        at = time.monotonic()
        if self.once.primary_key is None or self.stored or at - self._sent < self.once.config.heartbeat_seconds:
            return
        self._sent = at
        await run_unshared(self._heartbeat)

    def _heartbeat(self) -> None:
        with self.once.db.write() as session:
            self._update_own(session, heartbeat_at=now())

    def complete(self, fields: Mapping[str, Any], make: Make) -> Response:
        """Make the row and store the answer in one transaction, or replay."""
        digest = self.once.digest(fields)
        if self.stored is not None:
            return self.once._answer(self.stored, digest)
        with self.once.db.write() as session:
            text = make(session).model_dump_json()
            if self.once.primary_key is not None:
                self._update_own(session, digest=digest, status=200, body=text)
        return _json(text)

    def drop(self) -> None:
        """Free the key after a failed request."""
        if self.once.primary_key is None or self.stored is not None:
            return
        with self.once.db.write() as session:
            session.execute(delete(Idempotency).where(self._mine()))

    def _update_own(self, session: Session, **values: Any) -> None:
        if execute_and_count(session, update(Idempotency).where(self._mine()).values(**values)) != 1:
            raise InFlight

    def _mine(self) -> Any:
        assert self.once.primary_key is not None
        return and_(_at(self.once.primary_key), Idempotency.owner == self.owner, Idempotency.status == 0)


def _at(primary_key: tuple[str, str, str]) -> Any:
    project_id, route, key = primary_key
    return and_(Idempotency.project_id == project_id, Idempotency.route == route, Idempotency.key == key)


def _json(text: str, status: int = 200, *, replayed: bool = False) -> Response:
    headers = {"Idempotency-Replayed": "true"} if replayed else None
    return Response(text, status, media_type="application/json", headers=headers)


async def _make_once(request: Request, call: Call, idempotency_key: _KeyHeader = None) -> Once:
    route = f"{request.method} {request.scope['route'].path}"
    primary_key = (call.project_id, route, idempotency_key) if idempotency_key else None
    return Once(call.db, call.config, primary_key, f"{request.method} {request.url.path}")


Idempotent = Annotated[Once, Depends(_make_once)]
