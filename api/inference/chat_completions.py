"""Answer, store and serve chat completions with `store`.

    body ─▶ engine, which stores nothing ─┬─▶ with Nightmill's id ─▶ stored ─▶ client
                                          └─▶ chunks, with that id, joined at the end ─▶ stored ─▶ [DONE]

A completion is stored before its client sees the end. A request that fails or is abandoned stores nothing.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, cast

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import AfterValidator, Field
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.http import sse
from api.http.bodies import Body, Many, resource
from api.http.fields import Context, Metadata, MetadataField
from api.http.idempotency import Idempotent, Once
from api.http.paging import After, Limit20, Order, Page, cursor_details, page, slice_of
from api.http.space import check_space
from api.inference.chunks import Chunks
from api.inference.interactive import Events, plain_response, resume, stream_response, submit
from api.inference.prompts import PromptableRequest, UsedPrompt
from api.inference.schemas import CompletionDeleted, CompletionObject, StoredMessage, show_messages
from api.inference.stored_answers import Run, StoredAnswers, answer_once
from api.shares import run_in_threadpool
from jobs.clock import now
from jobs.errors import InvalidRequest, NightmillError, NotFound
from jobs.ids import new_id
from jobs.inference import stored
from jobs.inference.client import is_after, stream_start
from jobs.inference.context_options import context_options_of
from jobs.inference.interactive import AnswerEntry
from jobs.inference.stored import StoredAnswer, decode
from jobs.inference.tables import StoredCompletion
from jobs.platform.storage import remove_objects
from jobs.requests.endpoints import CHAT

_OWN_FIELDS = frozenset({"metadata", "store"})

STORED = StoredAnswers(
    StoredCompletion, CHAT, stored.completion_path, "chat_completion", "Chat completion", "completion_id"
)


class ChatCompletionRequest(PromptableRequest):
    """OpenAI's fields, and Nightmill's. With `context` a message may have a `priority`, a number."""

    messages: Many[dict[str, Any]] = Field(default=[], min_length=1)
    stream: bool | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    context: Context = None


class _Packed(msgspec.Struct):
    """The state that another process needs to show the rest of a stream."""

    id: str
    body: dict[str, Any]
    prompt: UsedPrompt | None = None


@dataclass(slots=True)
class Chat:
    """A chat completion in progress. `body` is the request without its prompt."""

    call: CallContext
    body: ChatCompletionRequest
    prompt: UsedPrompt | None
    id: str = field(default_factory=lambda: new_id(stored.COMPLETION_PREFIX))
    engine_body: dict[str, Any] = field(init=False)  # what the engine is sent: it must store nothing

    def __post_init__(self) -> None:
        self.engine_body = {name: value for name, value in self.body.fields().items() if name not in _OWN_FIELDS}

    @property
    def options(self) -> Any:
        """Return the options of the stream. The engine refuses a value that is not an object."""
        return self.engine_body.get("stream_options") or {}

    def to_public(self, answer: Any) -> dict[str, Any]:
        """Return an engine's answer as the client is shown it.

        Raises NightmillError for an answer that is no completion.
        """
        if not stored.is_completion(answer):
            raise _invalid_answer()
        named = {"prompt": self.prompt.public} if self.prompt else {}
        return {**stored.to_completion(answer, self.id, self.body.metadata), **named}

    def keep(self, answer: dict[str, Any], run: Run) -> None:
        """Store the answer, in one transaction, which `run` runs."""
        run(STORED.prepare(self.call, StoredAnswer(self.engine_body, answer)))


async def answer(chat: Chat, request: Request, once: Once, sent: dict[str, Any], seconds: int | None) -> Response:
    """Answer whole, once for each Idempotency-Key, or as a stream. `sent` are the fields that the client sent.

    Raises InvalidRequest, StorageFull.
    """
    call, body = chat.call, chat.body
    if body.fields().get("cache") not in (None, False):
        raise InvalidRequest("Invalid 'cache': it needs 'store' to be false.", param="cache", code="invalid_value")
    if seconds is not None and not body.stream:
        raise InvalidRequest("Only a stream can be resumed.", param="X-Nightmill-Resume", code="unsupported_value")
    context_options_of(CHAT, body.fields())
    await run_in_threadpool(check_space, call, 0)
    if body.stream:
        return await _stream_answer(chat, request, seconds)

    def load(completion_id: str) -> dict[str, Any]:
        return _load(call, completion_id).response

    return await answer_once(once, sent, partial(_answer_request, chat, request), chat.keep, load)


async def _answer_request(chat: Chat, request: Request) -> dict[str, Any] | Response:
    """Return the completion, or the engine's refusal."""
    end, entries = await submit(chat.call, request, CHAT, chat.engine_body, stream=False)
    await entries.aclose()
    return chat.to_public(_decode(end.body)) if end.status == 200 else plain_response(end)


async def _stream_answer(chat: Chat, request: Request, seconds: int | None) -> Response:
    """Return a stream, or the engine's refusal.

    Usage is always asked for, to store it; only clients that ask are shown it.
    """
    stream_options = (
        {"stream_options": {**chat.options, "include_usage": True}} if isinstance(chat.options, dict) else {}
    )
    engine_body = {**chat.engine_body, **stream_options}
    shown = msgspec.json.encode(_Packed(chat.id, chat.body.fields(), chat.prompt)) if seconds else b""
    prompt = chat.prompt.public if chat.prompt else None
    first, entries = await submit(
        chat.call, request, CHAT, engine_body, stream=True, resume=seconds, shown=shown, prompt=prompt
    )
    if first.kind == "end":
        await entries.aclose()
        if first.status == 200:  # an answer, but no stream
            raise _invalid_answer()
        return plain_response(first)
    return stream_response(_ChatEvents(chat, resumable=bool(seconds)).of(entries, first), first.position)


async def resume_events(call: CallContext, request: Request, last: str, shown: bytes) -> Response:
    """Return the events after one that the client has seen. The whole stream is read, to store it at the end.

    Raises InvalidRequest, NotFound where entries were dropped, StreamsUnavailable.
    """
    packed = msgspec.json.decode(shown, type=_Packed)
    chat = Chat(
        call, ChatCompletionRequest.model_validate_json(msgspec.json.encode(packed.body)), packed.prompt, packed.id
    )
    _, entries = await resume(call, request, stream_start(last), CHAT)
    return stream_response(_ChatEvents(chat, resumable=True, last=last).of(entries), last)


class _ChatEvents(Events):
    """Write the chunks behind `last`, and `[DONE]` once the completion is stored."""

    def __init__(self, chat: Chat, *, resumable: bool, last: str = "") -> None:
        super().__init__(resumable=resumable)
        self._chat, self._last = chat, last
        self._usage = isinstance(chat.options, dict) and bool(chat.options.get("include_usage"))
        self._chunks = Chunks()

    async def write(self, entry: AnswerEntry) -> bytes:
        """Return the event of an entry, empty for a hidden one. Raises NightmillError for data that is not a chunk."""
        if entry.kind == "chunk":
            return self._event(entry, self._chunk(entry))
        if entry.kind != "end":
            return sse.KEEP_ALIVE
        if not entry.body:
            await run_in_threadpool(self._keep)
        return self._event(entry, entry.body or sse.DONE)

    def _event(self, entry: AnswerEntry, data: bytes) -> bytes:
        if not data or (self._last and not is_after(entry.position, self._last)):
            return b""
        return sse.event(data, at=self.event_id(entry))

    def _chunk(self, entry: AnswerEntry) -> bytes:
        """Return a chunk with Nightmill's id; empty for a chunk of usage alone that the client did not ask for."""
        chunk = _decode(entry.body)
        if not isinstance(chunk, dict):
            raise _invalid_answer()
        if "choices" in chunk:
            chunk["id"] = self._chat.id
        visible = chunk if self._usage else {name: value for name, value in chunk.items() if name != "usage"}
        hidden = not self._usage and chunk.get("usage") is not None and chunk.get("choices") == []
        data = b"" if hidden else msgspec.json.encode(visible)
        self._chunks.add(chunk)
        return data

    def _keep(self) -> None:
        """Store the completion, unless the stream had an error, or another connection of it has stored it.

        Raises NightmillError where the stream was cut off.
        """
        if self._chunks.broken:
            return
        answer = self._chunks.whole()
        if answer is None:
            raise _invalid_answer()
        call, keep = self._chat.call, partial(self._chat.keep, self._chat.to_public(answer))
        if self._resumable:
            STORED.once(call, self._chat.id, keep)
        else:
            keep(call.run_in_transaction)


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.MsgspecError as error:
        raise _invalid_answer() from error


def _invalid_answer() -> NightmillError:
    return NightmillError("The engine's answer is not a chat completion.", code="engine_error")


router: APIRouter = resource("Chat completions", area="chat_completions")


class UpdateCompletion(Body):
    metadata: Metadata | None


def _check_completion(answer: dict[str, Any]) -> dict[str, Any]:
    if not stored.is_completion(answer):
        raise ValueError("It is a chat completion: it has 'choices', each with a 'message'.")
    return answer


def _check_request(request: ChatCompletionRequest) -> ChatCompletionRequest:
    """Check that the request stands alone: one that is served may take these fields from a prompt."""
    for name in ("messages", "model"):
        if not getattr(request, name):
            raise ValueError(f"It has '{name}'.")
    return request


class ImportCompletion(Body):
    """A chat completion that was made elsewhere: its request, which has the messages, and its answer."""

    imported_from: Annotated[str, Field(min_length=1, max_length=255, description="The id that it had elsewhere.")]
    request: Annotated[ChatCompletionRequest, AfterValidator(_check_request)]
    response: Annotated[dict[str, Any], AfterValidator(_check_completion)]
    metadata: MetadataField

    @property
    def creation_time(self) -> float:
        """Return the time of the answer in unix seconds; now where the answer names none, or one to come."""
        created = self.response.get("created")
        return min(float(created), now()) if isinstance(created, (int, float)) and created > 0 else now()

    def answer(self, completion_id: str) -> StoredAnswer:
        request = {name: value for name, value in self.request.fields().items() if name not in _OWN_FIELDS}
        completion = stored.to_completion(self.response, completion_id, self.metadata)
        return StoredAnswer(request, completion | {"imported_from": self.imported_from})


@router.get("/chat/completions")
def list_chat_completions(
    request: Request,
    call: Call,
    after: After = None,
    limit: Limit20 = 20,
    order: Order = "asc",
    model: Annotated[
        str | None, Query(max_length=255, description="As it was asked for, or as the answer names it.")
    ] = None,
) -> Page[CompletionObject]:
    """List stored completions, the oldest first. `metadata[key]=value` selects, up to 16 times."""
    cursor = {"after": after, "limit": limit, "order": order}
    completions, more = STORED.page(call, request, model, partial(_load_completion, call), cursor)
    return page(completions, more, _show)


@router.post("/chat/completions/imports", status_code=201, response_model=CompletionObject)
def import_chat_completion(call: Call, once: Idempotent, body: ImportCompletion) -> Response:
    """Take over a chat completion that was made elsewhere. The same one again is the one that is there already."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    completion_id = stored.id_of_import(call.project_id, body.imported_from)
    with call.db.read() as session:
        present = session.scalar(STORED.of(call).where(StoredCompletion.id == completion_id))
    if present is None:
        check_space(call, 0)
        insert = STORED.prepare(call, body.answer(completion_id), body.creation_time)
        with suppress(IntegrityError):  # another request imported it
            call.run_in_transaction(insert)
    shown = _show(_load(call, completion_id))
    return once.run(fields, lambda _session: shown, 201)


@router.get("/chat/completions/{completion_id}")
def retrieve_chat_completion(call: Call, completion_id: str) -> CompletionObject:
    """Return a stored completion."""
    return _show(_load(call, completion_id))


@router.post("/chat/completions/{completion_id}")
def update_chat_completion(call: Call, completion_id: str, body: UpdateCompletion) -> CompletionObject:
    """Replace the metadata."""
    with call.db.write() as session:
        row = get_completion(session, call, completion_id, lock=True)
        row.metadata_ = dict(body.metadata or {}) or None
        call.record(session, "chat_completion.update", row.id)
    return _show(_load(call, completion_id))


@router.delete("/chat/completions/{completion_id}")
def delete_chat_completion(call: Call, completion_id: str) -> CompletionDeleted:
    """Delete a stored completion and its request."""
    with call.db.write() as session:
        row = get_completion(session, call, completion_id, lock=True)
        path = row.path
        session.delete(row)
        call.record(session, "chat_completion.delete", row.id, cursor_details(row))
    remove_objects(call.storage, [path])
    return CompletionDeleted(id=row.id)


@router.get("/chat/completions/{completion_id}/messages")
def list_messages(
    call: Call, completion_id: str, after: After = None, limit: Limit20 = 20, order: Order = "asc"
) -> Page[StoredMessage]:
    """List the messages of the request."""
    messages = _load(call, completion_id).request["messages"]
    shown = show_messages(completion_id, messages)
    return slice_of(shown, StoredMessage.model_validate, after=after, limit=limit, order=order)


def get_completion(session: Session, call: CallContext, completion_id: str, *, lock: bool = False) -> StoredCompletion:
    """Return a row by its id, or by the id that the completion had elsewhere. Raises NotFound."""
    with suppress(NotFound):
        return cast("StoredCompletion", STORED.row(session, call, completion_id, lock=lock))
    with suppress(NotFound):
        id_of_import = stored.id_of_import(call.project_id, completion_id)
        return cast("StoredCompletion", STORED.row(session, call, id_of_import, lock=lock))
    raise STORED.not_found(completion_id)


def _load(call: CallContext, completion_id: str) -> StoredAnswer:
    """Load a stored completion. Raises NotFound."""
    with call.db.read() as session:
        row = get_completion(session, call, completion_id)
    stored_answer = _load_completion(call, row)
    if stored_answer is None:
        raise STORED.not_found(completion_id)
    return stored_answer


def _load_completion(call: CallContext, row: StoredCompletion) -> StoredAnswer | None:
    """Return a stored completion with its metadata, None where it was deleted a moment ago."""
    try:
        with call.storage.reader(row.path) as handle:
            stored_answer = decode(handle.read())
    except NotFound:
        return None
    return StoredAnswer(stored_answer.request, stored.to_completion(stored_answer.response, row.id, row.metadata_))


def _show(stored_answer: StoredAnswer) -> CompletionObject:
    return CompletionObject.model_validate(stored_answer.response)
