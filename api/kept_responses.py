"""Responses that are kept (`store`): one object in storage of all that the model was shown and what it answered.

    keep     object ─▶ row         a crash between leaves an object that retention removes
    forget   row ─▶ object         likewise

Each object holds its whole conversation so far, so that it can be continued whatever became of the turns before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import CallContext
from api.validation import clip
from jobs.clock import now
from jobs.errors import NotFound
from jobs.models import KeptResponse


@dataclass(frozen=True, slots=True)
class Kept:
    """`items` is the input as the model was shown it, earlier turns included; `response` the answer's JSON."""

    items: list[Any]
    response: dict[str, Any]


class Reference(BaseModel):
    """What an Idempotency-Key remembers: what was said lies in one place only."""

    id: str


def prepare(call: CallContext, kept: Kept) -> Callable[[Session], Reference]:
    """Write the object; returns what inserts its row."""
    created = now()
    row = {"id": str(kept.response["id"]), "project_id": call.project_id, "created_at": created}
    row["expires_at"] = created + call.config.response_seconds
    call.storage.put(KeptResponse(**row).path, msgspec.json.encode({"items": kept.items, "response": kept.response}))

    def insert(session: Session) -> Reference:
        session.add(KeptResponse(**row))
        call.record(session, "response.create", str(row["id"]))
        return Reference(id=str(row["id"]))

    return insert


def keep(call: CallContext, kept: Kept) -> None:
    insert = prepare(call, kept)
    with call.db.write() as session:
        insert(session)


def load(call: CallContext, response_id: str) -> Kept:
    """Raises NotFound."""
    with call.db.read() as session:
        row = _row(session, call, response_id)
    with call.storage.reader(row.path) as handle:
        found = msgspec.json.decode(handle.read())
    return Kept(found["items"], found["response"])


def forget(call: CallContext, response_id: str) -> None:
    """Raises NotFound."""
    with call.db.write() as session:
        row = _row(session, call, response_id)
        session.delete(row)
        call.record(session, "response.delete", row.id)
        path = row.path
    call.storage.delete(path)


def _row(session: Session, call: CallContext, response_id: str) -> KeptResponse:
    mine = KeptResponse.id == response_id, KeptResponse.project_id == call.project_id, KeptResponse.expires_at > now()
    row = session.scalar(select(KeptResponse).where(*mine))
    if row is None:
        raise NotFound(f"Response with id '{clip(response_id)}' not found.", param="response_id")
    return row
