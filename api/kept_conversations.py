"""Conversations that are kept: a row, and one object in storage with all items.

    change    new object ─▶ row, if nobody was faster ─▶ old object goes
    forget    row ─▶ object

A crash between leaves an object that retention removes. Of two changes at once the second one reads again.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from api.deps import CallContext
from api.space import check_project, reserve, reserve_or_remove
from api.validation import clip
from jobs.clock import now
from jobs.errors import Contended, DatabaseBusy, InvalidRequest, NotFound, ProjectFull
from jobs.ids import new_id
from jobs.models import Conversation
from jobs.storage import let_go

T = TypeVar("T")
Items = list[dict[str, Any]]
Apply = Callable[[Session], None]
_TRIES = 20  # of a change, each of which lost against another
_MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Held:
    """A conversation as it is now."""

    id: str
    version: int
    path: str
    items: Items
    bytes: int = 0


class _Moved(Exception):
    """Somebody has changed it meanwhile."""


def begin(call: CallContext, items: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Callable[[Session], str]:
    """Write its first object; returns what inserts its row, and tells its id."""
    conversation_id, created = new_id("conv_"), now()
    path, size = _write(call, conversation_id, _identified(items, set()))

    def insert(session: Session) -> str:
        reserve_or_remove(session, call, size, path, Conversation.path == path)
        row = {"project_id": call.project_id, "version": 1, "path": path, "labels": dict(labels), "bytes": size}
        session.add(Conversation(id=conversation_id, created_at=created, **row))
        call.record(session, "conversation.create", conversation_id)
        return conversation_id

    return insert


def load(call: CallContext, conversation_id: str) -> Held:
    """Raises NotFound, also where its items are not there: the files of a backup are of a later moment than its row."""
    missing = ""
    for _ in range(_TRIES):
        with call.db.read() as session:
            found = row(session, call, conversation_id)
        if found.path == missing:
            raise NotFound(f"The items of conversation '{clip(conversation_id)}' are gone.", param="conversation_id")
        try:
            with call.storage.reader(found.path) as handle:
                items: Items = msgspec.json.decode(handle.read())
        except NotFound:
            missing = found.path  # replaced a moment ago, mostly
            continue
        return Held(found.id, found.version, found.path, items, found.bytes or 0)
    raise _busy(conversation_id)


def add(
    call: CallContext, conversation_id: str, items: Sequence[Mapping[str, Any]], commit: Callable[[Apply, Items], T]
) -> T:
    """Append. `commit` runs a transaction in which it calls what it is given; it is also told the new items.

    Raises NotFound, InvalidRequest when it would be too long, Contended, and what `commit` raises.
    """

    def edit(said: Items) -> tuple[Items, Items]:
        new = _identified(items, {str(item["id"]) for item in said})
        return [*said, *new], new

    return _change(call, conversation_id, edit, commit)


def remove(call: CallContext, conversation_id: str, item_id: str) -> None:
    """Take one item out. Raises NotFound, Contended."""

    def edit(said: Items) -> tuple[Items, Items]:
        left = [item for item in said if item["id"] != item_id]
        if len(left) == len(said):
            raise no_item(item_id)
        return left, []

    def commit(apply: Apply, _: Items) -> None:
        with call.db.write() as session:
            apply(session)
            call.record(session, "conversation.item.delete", conversation_id, {"item": item_id})

    _change(call, conversation_id, edit, commit)


def forget(call: CallContext, conversation_id: str) -> None:
    """Raises NotFound."""
    with call.db.write() as session:
        gone = row(session, call, conversation_id, lock=True)
        path = gone.path
        session.delete(gone)
        call.record(session, "conversation.delete", conversation_id)
    let_go(call.storage, [path])


def no_item(item_id: str) -> NotFound:
    return NotFound(f"Item with id '{clip(item_id)}' not found.", param="item_id")


def _change(
    call: CallContext,
    conversation_id: str,
    edit: Callable[[Items], tuple[Items, Items]],
    commit: Callable[[Apply, Items], T],
) -> T:
    """Again from what is there then, for as long as others are faster. `edit` gives all items, and the new ones."""
    for _ in range(_TRIES):
        held = load(call, conversation_id)
        items, new = edit(held.items)
        try:
            return _replace(call, held, items, new, commit)
        except _Moved:
            continue
    raise _busy(conversation_id)


def _replace(call: CallContext, held: Held, items: Items, new: Items, commit: Callable[[Apply, Items], T]) -> T:
    path, size = _write(call, held.id, items, held.bytes)

    def apply(session: Session) -> None:
        mine = Conversation.id == held.id, Conversation.version == held.version
        swap = update(Conversation).where(*mine).values(version=held.version + 1, path=path, bytes=size)
        if session.execute(swap).rowcount != 1:  # type: ignore[attr-defined]
            raise _Moved
        reserve(session, call, size - held.bytes)

    try:
        value = commit(apply, new)
    except (_Moved, ProjectFull):
        let_go(call.storage, [path])
        raise  # any other error may hide a commit: then both objects stay, and retention finds out
    _tidy(call, held.id, {held.path, path})
    return value


def _tidy(call: CallContext, conversation_id: str, paths: set[str]) -> None:
    """Remove those that the row does not point to: what `commit` came to, a replay perhaps, the row alone says."""
    with suppress(DatabaseBusy):  # then both stay, and retention finds out
        with call.db.read() as session:
            current = session.scalar(select(Conversation.path).where(Conversation.id == conversation_id))
        let_go(call.storage, paths - {current})


def _write(call: CallContext, conversation_id: str, items: Items, was: int = 0) -> tuple[str, int]:
    """Write all items, in place of `was` bytes, and return the path and the size of the object.

    Each under a name of its own: two that change it at once must not write over each other.
    """
    data = msgspec.json.encode(items)
    if len(data) > _MOST_BYTES:
        message = f"A conversation holds at most {_MOST_BYTES} bytes."
        raise InvalidRequest(message, param="items", code="conversation_too_long")
    check_project(call, len(data) - was)
    path = f"conversations/{conversation_id}-{new_id('')}"
    call.storage.put(path, data)
    return path, len(data)


def _identified(items: Sequence[Mapping[str, Any]], taken: set[str]) -> Items:
    """Each under an id that is its own within the conversation."""
    found: Items = []
    for item in items:
        name = item.get("id")
        if not isinstance(name, str) or name in taken:
            name = new_id("msg_" if item["type"] == "message" else "item_")
        taken.add(name)
        found.append({**item, "id": name})
    return found


def row(session: Session, call: CallContext, conversation_id: str, *, lock: bool = False) -> Conversation:
    """Raises NotFound."""
    mine = Conversation.id == conversation_id, Conversation.project_id == call.project_id
    statement = select(Conversation).where(*mine)
    row = session.scalar(statement.with_for_update() if lock else statement)
    if row is None:
        raise NotFound(f"Conversation with id '{clip(conversation_id)}' not found.", param="conversation_id")
    return row


def _busy(conversation_id: str) -> Contended:
    return Contended(f"Conversation '{clip(conversation_id)}' is being changed by others.", code="conversation_locked")
