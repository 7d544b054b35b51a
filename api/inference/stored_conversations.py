"""Store conversations: a row, and immutable objects in storage with the items (see `jobs.inference.conversations`).

    change    new objects ─▶ row, if no other change came first ─▶ remove the objects that the row no longer names
    delete    row ─▶ objects

A crash between two steps leaves objects that retention removes. In one process the changes of a conversation wait for
each other. Of two changes in different processes at once, the second one reads the conversation again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from api import shares
from api.deps import CallContext
from api.errors import clip
from api.http.space import check_project, reserve, reserve_or_remove
from jobs.clock import now
from jobs.db.engine import execute_and_count
from jobs.errors import Contended, DatabaseBusy, InvalidRequest, NotFound, ProjectFull, StorageUnavailable
from jobs.ids import new_id
from jobs.inference import conversations
from jobs.inference.conversations import ConversationSegment, Head, items_in
from jobs.inference.item_ids import new_conversation_item_id
from jobs.inference.tables import Conversation
from jobs.platform.storage import remove_objects

T = TypeVar("T")
Items = list[dict[str, Any]]
Apply = Callable[[Session], None]
_TRIES = 4  # of a change; each lost against another process
_MAX_BYTES = 16 << 20
_MAX_SEARCHED_IDS = 8  # ids; for more, decoding the object costs less than searching for each


@dataclass(frozen=True, slots=True)
class Held:
    """The current state of a conversation."""

    id: str
    version: int
    bytes: int
    head: Head


@dataclass(slots=True)
class _Change:
    """The next head, the objects written for it, and the objects that it does not name any more."""

    before: Sequence[ConversationSegment]
    items: Sequence[msgspec.Raw]
    new: Items = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)


class _Named(msgspec.Struct):
    id: str


class _Moved(Exception):
    """Another process has changed the conversation meanwhile."""


def begin(
    call: CallContext, items: Sequence[Mapping[str, Any]], metadata: Mapping[str, str]
) -> Callable[[Session], str]:
    """Write the first object; return its id and the function that inserts its row."""
    conversation_id, created = new_id("conv_"), now()
    path, size = _write(call, conversation_id, (), _raws(_add_ids(conversation_id, items, set())))

    def insert(session: Session) -> str:
        reserve_or_remove(session, call, size, path, Conversation.path == path)
        row = {"project_id": call.project_id, "version": 1, "path": path, "metadata_": dict(metadata), "bytes": size}
        session.add(Conversation(id=conversation_id, created_at=created, **row))
        call.record(session, "conversation.create", conversation_id)
        return conversation_id

    return insert


def load(call: CallContext, conversation_id: str) -> Items:
    """Load all items, and reserve their bytes for the request. Raises NotFound, Contended, ProjectBusy."""
    reserved = 0

    def read(held: Held) -> Items:
        nonlocal reserved
        more = max(0, held.head.size + sum(segment.size for segment in held.head.before) - reserved)
        shares.reserve(more)
        reserved += more  # a repeated read replaces the former one
        return [msgspec.json.decode(item) for _, raw in held.head.objects() for item in items_in(raw)]

    return _reading(call, conversation_id, read)


def find(call: CallContext, conversation_id: str, names: Iterable[str]) -> Items:
    """Return the items that have these ids, in order. Raises NotFound, Contended."""
    return _reading(call, conversation_id, lambda held: _find(held.head, set(names)))


def read_page(
    call: CallContext, conversation_id: str, *, after: str | None, limit: int, order: str
) -> tuple[Items, bool]:
    """Return the items of one page, and whether there are more. No object beyond the page is read.

    Raises NotFound, Contended, and InvalidRequest where no item has the id `after`.
    """
    return _reading(call, conversation_id, lambda held: _page(held.head, after, limit, newest_first=order == "desc"))


def add(
    call: CallContext, conversation_id: str, items: Sequence[Mapping[str, Any]], commit: Callable[[Apply, Items], T]
) -> T:
    """Append items to a conversation.

    `commit` receives a function and the new items, and runs the function in a transaction.
    Raises NotFound, InvalidRequest for too long a conversation, Contended, and the errors of `commit`.
    """

    def edit(held: Held) -> _Change:
        given = {item["id"] for item in items if isinstance(item.get("id"), str)}
        new = _add_ids(conversation_id, items, {item["id"] for item in _find(held.head, given)})
        raws, head = _raws(new), held.head
        head_items = items_in(head.raw)
        if not head_items or head.size + sum(len(bytes(raw)) for raw in raws) <= conversations.SEGMENT_BYTES:
            return _Change(head.before, [*head_items, *raws], new, stale=[head.path])
        return _Change([*head.before, ConversationSegment(head.path, head.size)], raws, new)

    return _change(call, conversation_id, edit, commit)


def remove(call: CallContext, conversation_id: str, item_id: str) -> None:
    """Remove one item. Raises NotFound, Contended."""

    def edit(held: Held) -> _Change:
        needle = msgspec.json.encode(item_id)
        for path, raw in held.head.objects(newest_first=True):
            items = items_in(raw) if needle in raw else []
            left = [item for item in items if _id(item) != item_id]
            if len(left) < len(items):
                return _removal(call, held, path, left)
        raise no_item(item_id)

    def commit(apply: Apply, _: Items) -> None:
        with call.db.write() as session:
            apply(session)
            call.record(session, "conversation.item.delete", conversation_id, {"item": item_id})

    _change(call, conversation_id, edit, commit)


def forget(call: CallContext, conversation_id: str) -> None:
    """Delete a conversation. Raises NotFound."""
    with call.db.write() as session:
        conversation = get_conversation(session, call, conversation_id, lock=True)
        path = conversation.path
        session.delete(conversation)
        call.record(session, "conversation.delete", conversation_id)
    folder, paths = conversations.folder(conversation_id), {path}
    with suppress(NotFound, StorageUnavailable):  # retention removes what is left
        paths |= {segment.path for segment in Head(call.storage, path).before}
    flat = [path for path in paths if not path.startswith(f"{folder}/")]
    remove_objects(call.storage, [*flat, folder])


def no_item(item_id: str) -> NotFound:
    return NotFound(f"Item with id '{clip(item_id)}' not found.", param="item_id")


def _reading(call: CallContext, conversation_id: str, read: Callable[[Held], T]) -> T:
    """Read a conversation, again where it was changed meanwhile.

    Raises NotFound, also where its objects are missing: a backup's files are newer than its rows.
    """
    missing = ""
    for _ in range(_TRIES):
        with call.db.read() as session:
            conversation = get_conversation(session, call, conversation_id)
        if conversation.path == missing:
            raise NotFound(f"The items of conversation '{clip(conversation_id)}' are gone.", param="conversation_id")
        try:
            return read(
                Held(
                    conversation.id,
                    conversation.version,
                    conversation.bytes or 0,
                    Head(call.storage, conversation.path),
                )
            )
        except NotFound as error:
            if error.param is not None:  # no such item
                raise
            missing = conversation.path  # usually just replaced
    raise _busy(conversation_id)


def _find(head: Head, names: set[str]) -> Items:
    """Yield the items with these ids, in order.

    For a few ids, only objects that contain the text of one are decoded.
    """
    segments: list[Items] = []
    left = {msgspec.json.encode(name): name for name in names}
    for _, raw in head.objects(newest_first=True) if left else ():
        if len(left) > _MAX_SEARCHED_IDS or any(needle in raw for needle in left):
            here = [item for item in items_in(raw) if _id(item) in names]
            segments.append([msgspec.json.decode(item) for item in here])
            for item in segments[-1]:
                left.pop(msgspec.json.encode(item["id"]), None)
        if not left:
            break
    return [item for some in reversed(segments) for item in some]


def _page(head: Head, after: str | None, limit: int, *, newest_first: bool) -> tuple[Items, bool]:
    shown: list[msgspec.Raw] = []
    needle = None if after is None else msgspec.json.encode(after)
    for _, raw in head.objects(newest_first=newest_first):
        if needle is not None and needle not in raw:
            continue
        items = items_in(raw)[:: -1 if newest_first else 1]
        if needle is not None:
            index = next((n for n, item in enumerate(items) if _id(item) == after), None)
            if index is None:
                continue
            items, needle = items[index + 1 :], None
        shown += items[: limit + 1 - len(shown)]
        if len(shown) > limit:
            break
    if needle is not None:
        raise InvalidRequest(f"No object with id '{clip(after)}'.", param="after", code="invalid_cursor")
    return [msgspec.json.decode(item) for item in shown[:limit]], len(shown) > limit


def _removal(call: CallContext, held: Held, path: str, left: list[msgspec.Raw]) -> _Change:
    """Return the change that leaves these items in the object at `path`, which is the head or a segment."""
    head = held.head
    if path == head.path:
        return _Change(head.before, left, stale=[path])
    change = _Change([], items_in(head.raw), stale=[path, head.path])
    replaced = []
    if left:
        data = conversations.encode((), left)
        change.written.append(conversations.new_path(held.id))
        call.storage.put(change.written[0], data)
        replaced = [ConversationSegment(change.written[0], len(data))]
    at = next(n for n, segment in enumerate(head.before) if segment.path == path)
    change.before = [*head.before[:at], *replaced, *head.before[at + 1 :]]
    return change


def _change(
    call: CallContext, conversation_id: str, edit: Callable[[Held], _Change], commit: Callable[[Apply, Items], T]
) -> T:
    """Apply a change to the current state, and retry a few times where other processes are faster."""
    patience = call.services.timings.conversation_patience
    with call.services.changing.hold(f"{call.project_id}/{conversation_id}", patience) as held:
        for _ in range(_TRIES if held else 0):
            with suppress(_Moved):
                return _replace(call, conversation_id, edit, commit)
    raise _busy(conversation_id)


def _replace(
    call: CallContext, conversation_id: str, edit: Callable[[Held], _Change], commit: Callable[[Apply, Items], T]
) -> T:
    held, change = _reading(call, conversation_id, lambda held: (held, edit(held)))
    path, size = _write(call, held.id, change.before, change.items, held.bytes)
    change.written.append(path)

    def apply(session: Session) -> None:
        conditions = Conversation.id == held.id, Conversation.version == held.version
        swap = update(Conversation).where(*conditions).values(version=held.version + 1, path=path, bytes=size)
        if execute_and_count(session, swap) != 1:
            raise _Moved
        reserve(session, call, size - held.bytes)

    try:
        value = commit(apply, change.new)
    except (_Moved, ProjectFull):
        remove_objects(call.storage, change.written)
        raise  # any other error may hide a commit: all objects stay, and retention removes orphans
    _tidy(call, held, path, change)
    return value


def _tidy(call: CallContext, held: Held, path: str, change: _Change) -> None:
    """Remove the objects that the row does not name. Only the row says what was committed: it may have been a replay.

    When another process has changed the conversation since, its head may name any of them: retention removes orphans.
    """
    with suppress(DatabaseBusy):  # all objects stay, and retention removes orphans
        with call.db.read() as session:
            current = session.get(Conversation, held.id)
        if current is not None and current.path == path:
            remove_objects(call.storage, change.stale)
        elif current is not None and current.version == held.version:
            remove_objects(call.storage, change.written)


def _write(
    call: CallContext,
    conversation_id: str,
    before: Sequence[ConversationSegment],
    items: Sequence[msgspec.Raw],
    was: int = 0,
) -> tuple[str, int]:
    """Write a head; return its path and the bytes of the whole conversation, which had `was` bytes.

    Raises InvalidRequest for too long a conversation, ProjectFull.
    """
    data = conversations.encode(before, items)
    size = len(data) + sum(segment.size for segment in before)
    if size > _MAX_BYTES:
        message = f"A conversation holds at most {_MAX_BYTES} bytes."
        raise InvalidRequest(message, param="items", code="conversation_too_long")
    check_project(call, size - was)
    path = conversations.new_path(conversation_id)
    call.storage.put(path, data)
    return path, size


def _raws(items: Items) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.json.encode(item)) for item in items]


def _id(item: msgspec.Raw) -> str:
    return msgspec.json.decode(item, type=_Named).id


def _add_ids(conversation_id: str, items: Sequence[Mapping[str, Any]], taken: set[str]) -> Items:
    """Return the items with ids that are unique within the conversation."""
    identified: Items = []
    for item in items:
        name = item.get("id")
        if not isinstance(name, str) or name in taken:
            name = new_conversation_item_id(conversation_id, item)
        taken.add(name)
        identified.append({**item, "id": name})
    return identified


def get_conversation(session: Session, call: CallContext, conversation_id: str, *, lock: bool = False) -> Conversation:
    """Return the row of a conversation of the project, locked if `lock`.

    Raises: NotFound.
    """
    conditions = Conversation.id == conversation_id, Conversation.project_id == call.project_id
    statement = select(Conversation).where(*conditions)
    row = session.scalar(statement.with_for_update() if lock else statement)
    if row is None:
        raise NotFound(f"Conversation with id '{clip(conversation_id)}' not found.", param="conversation_id")
    return row


def _busy(conversation_id: str) -> Contended:
    return Contended(f"Conversation '{clip(conversation_id)}' is being changed by others.", code="conversation_locked")
