"""The chat completions that are kept: a row, and an object in storage with what was asked and answered.

keep     object ─▶ row          a crash between leaves an object that retention removes
forget   row ─▶ object          likewise

Metadata is the row's, so that it can be changed and looked for; what was said lies in the object alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from api.deps import CallContext
from api.errors import clip
from api.http.idempotency import Make
from api.http.paging import deleted, find, labelled, place_of
from api.http.space import check_project, reserve_or_remove
from api.inference.answered_once import Reference, Run, keep_once
from jobs.clock import now
from jobs.errors import NotFound
from jobs.inference import completions
from jobs.inference.stored import Kept, decode, encode
from jobs.inference.tables import KeptCompletion
from jobs.platform.storage import let_go
from jobs.requests.endpoints import CHAT

_TRIES = 3  # of a page, each of which lost an object that was deleted at that moment
_LONGEST_NAME = 255
_CREATED = "chat_completion.create"


def prepare(call: CallContext, kept: Kept, asked: str, labels: Mapping[str, str]) -> Make:
    """Write the object; returns what inserts its row. `asked` is the model as the client names it."""
    created = now()
    completion_id, data = str(kept.response["id"]), encode(CHAT, kept)
    path, size = completions.path(completion_id), len(data)
    check_project(call, size)
    call.storage.put(path, data)
    model = kept.response.get("model")

    def insert(session: Session) -> Reference:
        reserve_or_remove(session, call, size, path, KeptCompletion.id == completion_id)
        row = KeptCompletion(id=completion_id, project_id=call.project_id, labels=dict(labels) or None, bytes=size)
        row.asked, row.model = _name(asked), _name(model if isinstance(model, str) else asked)
        row.created_at, row.expires_at = created, created + call.config.response_seconds
        session.add(row)
        call.record(session, _CREATED, row.id)
        return Reference(id=row.id)

    return insert


def once(call: CallContext, completion_id: str, keep: Callable[[Run], None]) -> None:
    """`keep` a completion with what it is given, unless another connection of its stream did."""
    keep_once(call, KeptCompletion, _CREATED, completion_id, completions.path(completion_id), keep)


def load(call: CallContext, completion_id: str) -> Kept:
    """Raises NotFound."""
    with call.db.read() as session:
        row = _row(session, call, completion_id)
    kept = _read(call, row)
    if kept is None:
        raise _none(completion_id)
    return kept


def listed(
    call: CallContext, model: str | None, query: Iterable[tuple[str, str]], **paging: Any
) -> tuple[Sequence[dict[str, Any]], bool]:
    """A page, and whether there are more. Raises InvalidRequest."""
    mine = _mine(call)
    statement = labelled(mine, KeptCompletion.labels, query, sqlite=call.db.sqlite)
    if model is not None:
        statement = statement.where(or_(KeptCompletion.asked == model, KeptCompletion.model == model))
    for _ in range(_TRIES):
        with call.db.read() as session:
            gone = deleted(call, "chat_completion.delete")
            rows, more = find(session, statement, KeptCompletion, among=mine, gone=gone, **paging)
        found = [kept.response for row in rows if (kept := _read(call, row))]
        if len(found) == len(rows):
            break
    return found, more


def relabel(call: CallContext, completion_id: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Its metadata anew. Raises NotFound."""
    with call.db.write() as session:
        row = _row(session, call, completion_id, lock=True)
        row.labels = dict(labels) or None
        call.record(session, "chat_completion.update", row.id)
    return load(call, completion_id).response


def forget(call: CallContext, completion_id: str) -> None:
    """Raises NotFound."""
    with call.db.write() as session:
        row = _row(session, call, completion_id, lock=True)
        path = row.path
        session.delete(row)
        call.record(session, "chat_completion.delete", row.id, place_of(row))
    let_go(call.storage, [path])


def _mine(call: CallContext) -> Select[KeptCompletion]:
    return select(KeptCompletion).where(KeptCompletion.project_id == call.project_id, KeptCompletion.expires_at > now())


def _row(session: Session, call: CallContext, completion_id: str, *, lock: bool = False) -> KeptCompletion:
    statement = _mine(call).where(KeptCompletion.id == completion_id)
    row = session.scalar(statement.with_for_update() if lock else statement)
    if row is None:
        raise _none(completion_id)
    return row


def _read(call: CallContext, row: KeptCompletion) -> Kept | None:
    """None where it was deleted a moment ago."""
    try:
        with call.storage.reader(row.path) as handle:
            kept = decode(handle.read())
    except NotFound:
        return None
    return Kept(kept.question, completions.ours(kept.response, row.id, row.labels))


def _none(completion_id: str) -> NotFound:
    return NotFound(f"Chat completion with id '{clip(completion_id)}' not found.", param="completion_id")


def _name(model: str) -> str:
    """As a column takes it: what an engine calls a model is its own affair."""
    return model.replace("\0", "")[:_LONGEST_NAME]
