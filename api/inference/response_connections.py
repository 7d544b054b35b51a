"""Serve responses over WebSocket: on one connection a client asks for one response after another.

    message ─▶ its lane: behind the requests with the same `stream_id` ─▶ as `POST /v1/responses` with `stream` ─┐
    client  ◀─ the events of the response, or an error, each one message with its `stream_id` ◀──────────────────┘

A lane caches the items up to its latest response, if that is not stored, in memory and as long as the connection lasts:
any request on the connection may continue it. A request that fails to continue the response of its own lane evicts it.
A connection lasts an hour at most; what it answers ends with it, like a stream whose client has hung up. When this
process stops, the connection takes no more messages, and is closed after its answers.

The protocol is OpenAI's WebSocket mode: https://developers.openai.com/api/docs/guides/websocket-mode
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import State
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from api import shares
from api.deps import CallContext, call_of, requires
from api.errors import clip, describe, log_failure, respond
from api.health.metrics import observe_request
from api.http.access_log import log_request
from api.http.bodies import read_message, validate_fields
from api.http.sse import check_key
from api.inference.response_streams import event_objects
from api.inference.targets import route_of, work_of
from api.inference.turns import CreateResponse, Turn, begin, initial_response, keep
from api.shares import ProjectShare, RequestShare, run_in_threadpool
from jobs.clock import now
from jobs.errors import InvalidRequest, NightmillError, PermissionDenied, TooManyRequests
from jobs.inference import responses
from jobs.inference.answer_events import events_of_response
from jobs.requests.endpoints import RESPONSES

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1")
note_permission = requires("responses")

#: OpenAI's limits for one connection: responses in progress, and names of lanes.
_MAX_RUNNING: Final = 16
_MAX_LANES: Final = 32
#: Requests of one connection in progress or waiting for their lane.
_MAX_PENDING: Final = 64
_STREAM_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_CREATE: Final = "response.create"
_ANSWERED: Final = frozenset({"response.completed", "response.incomplete"})
_GOING_AWAY: Final = 1001  # after which the SDK connects anew
_POLICY: Final = 1008

Event = dict[str, Any]


class ConnectionTooOld(InvalidRequest):
    """A connection that has lasted as long as it may."""

    text = "This connection has reached its limit of 60 minutes. Connect again to go on."
    code = "websocket_connection_limit_reached"


class _Options(BaseModel):
    """The field that only a request on a connection has."""

    model_config = ConfigDict(strict=True)

    generate: bool | None = None


@router.websocket("/responses")
async def connect(socket: WebSocket) -> None:
    """Open a connection that answers `response.create`."""
    await note_permission(socket)
    try:
        call = await call_of(socket)
    except PermissionDenied as error:
        await socket.send_denial_response(respond(error))
        return
    usage = shares.current.get()
    assert usage is not None, "the middleware counts each connection"
    await _Connection(socket, call, usage.share).serve()


@dataclass(slots=True)
class _Lane:
    """The requests of one `stream_id`, which are answered in order, and the cached response."""

    stream_id: str | None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    response_id: str | None = None
    items: bytes = b""  # up to and with the response, as JSON


@dataclass(frozen=True, slots=True)
class _Request:
    """A `response.create`: its fields without those of the connection, and the bytes that it uses."""

    lane: _Lane
    usage: RequestShare
    fields: dict[str, Any]
    generate: bool

    @property
    def previous(self) -> Any:
        return self.fields.get("previous_response_id")


class _Connection:
    """One connection, which is also the client of each of its requests (see `interactive.Client`)."""

    def __init__(self, socket: WebSocket, call: CallContext, share: ProjectShare) -> None:
        self._socket, self._call, self._share = socket, call, share
        self._lanes: dict[str | None, _Lane] = {}
        self._running = asyncio.Semaphore(_MAX_RUNNING)
        self._pending: set[asyncio.Task[None]] = set()
        self._leave = socket.state.leave = asyncio.Event()  # `api.server` sets it when this process stops

    @property
    def state(self) -> State:
        return self._socket.state

    async def is_disconnected(self) -> bool:
        return self._socket.client_state is WebSocketState.DISCONNECTED

    async def serve(self) -> None:
        """Answer what the client asks for.

        The end comes when the client leaves, its key is revoked, the connection is too old or this process stops.
        """
        await self._socket.accept()
        try:
            async with asyncio.timeout(self._call.services.timings.connection_lifetime):
                async with asyncio.TaskGroup() as tasks:
                    taking = tasks.create_task(self._take_messages(tasks))
                    await self._leave.wait()
                    taking.cancel()
                await self._socket.close(_GOING_AWAY)
        except* WebSocketDisconnect:
            pass
        except* TimeoutError:
            with suppress(WebSocketDisconnect):
                await self._send(error_event(ConnectionTooOld()), None)
                await self._socket.close(_GOING_AWAY)
        finally:
            for lane in self._lanes.values():
                self._evict(lane)

    async def _take_messages(self, tasks: asyncio.TaskGroup) -> None:
        """Begin a task for each message. Raises WebSocketDisconnect."""
        while True:
            await self._take_message(tasks)

    async def _take_message(self, tasks: asyncio.TaskGroup) -> None:
        """Read a message, and begin a task that answers it. Raises WebSocketDisconnect."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        text = message.get("text")
        raw = message["bytes"] if text is None else text.encode()
        usage, stream_id, task = RequestShare(self._share), None, None
        try:
            usage.reserve(len(raw))
            event = _client_event(await read_message(raw, RESPONSES))
            stream_id = _stream_id(event)
            task = tasks.create_task(self._answer(self._request(event, stream_id, usage)))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)
            task.add_done_callback(lambda _: usage.release())
        except NightmillError as error:
            await self._send(error_event(error), stream_id)
        finally:
            if task is None:
                usage.release()

    def _request(self, event: Event, stream_id: str | None, usage: RequestShare) -> _Request:
        """Return the request of an event. Raises InvalidRequest, TooManyRequests."""
        if len(self._pending) >= _MAX_PENDING:
            message = f"This connection has {_MAX_PENDING} requests that are not answered yet. Wait for one of them."
            raise TooManyRequests(message)
        generate = validate_fields(_Options, event).generate
        event.pop("generate", None)
        if stream_id not in self._lanes:
            if stream_id is not None and len(self._lanes.keys() - {None}) >= _MAX_LANES:
                message = f"This connection has {_MAX_LANES} stream ids already. Use one of them, or connect anew."
                raise InvalidRequest(message, param="stream_id", code="websocket_stream_limit_reached")
            self._lanes[stream_id] = _Lane(stream_id)
        return _Request(self._lanes[stream_id], usage, event, generate is not False)

    async def _answer(self, request: _Request) -> None:
        """Send the events of a request when its turn in its lane has come. Raises WebSocketDisconnect."""
        shares.current.set(request.usage)
        lane = request.lane
        async with lane.lock, self._running, aclosing(self._events(request)) as events:
            began, answered, status = time.perf_counter(), False, HTTPStatus.OK.value
            async for event in events:
                status = int(event.get("status", HTTPStatus.OK))
                if not answered:
                    observe_request(self._socket.scope, status, time.perf_counter() - began)
                    answered = True
                if (
                    event.get("type") == "error"
                    and lane.response_id is not None
                    and lane.response_id == request.previous
                ):
                    self._evict(lane)
                await self._send(event, lane.stream_id)
                if status == HTTPStatus.UNAUTHORIZED:
                    await self._socket.close(_POLICY)
                    raise WebSocketDisconnect(_POLICY)
            if self._call.config.access_log:
                log_request(self._socket.scope, status, time.perf_counter() - began)

    async def _events(self, request: _Request) -> AsyncGenerator[Event]:
        """Yield the events of a request; the last one ends its response, or is an error."""
        try:
            async with self._share.thread():
                pass
            turn = await run_in_threadpool(
                _begin, self._call, request.fields, self._find_cached_items(request.previous)
            )
            async with aclosing(event_objects(turn, self) if request.generate else _prepare_events(turn)) as events:
                async for event in events:
                    if event.get("type") in _ANSWERED:  # first, so that a request in another lane can continue it
                        await self._cache(request.lane, turn, event["response"])
                    yield event
        except NightmillError as error:
            log_failure(error)
            yield error_event(error)
        except Exception:  # the other requests of the connection go on
            log.exception("request_crashed")
            yield error_event(NightmillError())

    def _find_cached_items(self, response_id: Any) -> bytes | None:
        """Return the items up to and with a response, as JSON, where a lane has cached them."""
        lanes = (lane for lane in self._lanes.values() if lane.items)
        return next((lane.items for lane in lanes if lane.response_id == response_id), None)

    async def _cache(self, lane: _Lane, turn: Turn, response: Mapping[str, Any]) -> None:
        """Cache the items up to a response that is not stored, if the project's share has room for them."""
        self._evict(lane)
        if turn.store:
            return
        items = await run_in_threadpool(_encode, turn, response)
        if self._share.cached.try_acquire(len(items)):
            lane.response_id, lane.items = turn.id, items

    def _evict(self, lane: _Lane) -> None:
        self._share.cached.release(len(lane.items))
        lane.response_id, lane.items = None, b""

    async def _send(self, event: Event, stream_id: str | None) -> None:
        """Send an event. Raises WebSocketDisconnect."""
        if self._socket.application_state is not WebSocketState.CONNECTED:
            raise WebSocketDisconnect
        named = event if stream_id is None else {**event, "stream_id": stream_id}
        await self._socket.send_text(msgspec.json.encode(named).decode())


def error_event(error: NightmillError) -> Event:
    """Return the event of an error, with the status and the `Retry-After` that an answer over HTTP would have."""
    event = {"type": "error", "status": error.status.value, **describe(error)}
    if error.retry_after is not None:
        event["error"]["headers"] = {"retry-after": str(error.retry_after)}
    return event


def _client_event(message: Any) -> Event:
    """Return the fields of a `response.create`, without its type. Raises InvalidRequest."""
    if not isinstance(message, dict):
        raise InvalidRequest("A message must be a JSON object.", code="invalid_type")
    kind = message.pop("type", None)
    if kind is None:
        raise InvalidRequest("Missing required parameter: 'type'.", param="type", code="missing_required_parameter")
    if kind != _CREATE:
        error = f"Invalid value: '{clip(kind)}'. Supported values are: '{_CREATE}'."
        raise InvalidRequest(error, param="type", code="invalid_value")
    return message


def _stream_id(event: Event) -> str | None:
    """Take the name of its lane from an event, and return it. Raises InvalidRequest."""
    stream_id = event.pop("stream_id", None)
    if stream_id is None or (isinstance(stream_id, str) and _STREAM_ID.fullmatch(stream_id)):
        return stream_id
    message = "'stream_id' must have 1 to 256 characters: letters, digits, underscores, hyphens and periods."
    raise InvalidRequest(message, param="stream_id", code="invalid_stream_id")


def _begin(call: CallContext, fields: dict[str, Any], cached: bytes | None) -> Turn:
    """Check the key and the fields of a request, and build its turn. Raises KeyRevoked, and what `begin` raises."""
    with call.db.read() as session:
        check_key(session, call)
    for name, wrong in (("background", True), ("stream", False)):
        if fields.get(name) is wrong:
            message = f"'{name}' cannot be {str(wrong).lower()} over WebSocket."
            raise InvalidRequest(message, param=name, code="unsupported_value")
    return begin(call, validate_fields(CreateResponse, {**fields, "stream": True}), cached)


async def _prepare_events(turn: Turn) -> AsyncGenerator[Event]:
    """Yield the events of a response without output, for `generate: false`: the next request continues it."""
    for event in events_of_response(await run_in_threadpool(_prepare, turn)):
        yield event


def _prepare(turn: Turn) -> dict[str, Any]:
    """Return a completed response that no engine was asked for, after it was stored. Raises what `route_of` raises."""
    with turn.call.db.read() as session:
        route = route_of(session, turn.call, work_of(turn.call, RESPONSES, turn.engine_body))
    response = {**initial_response(turn, route), "status": "completed", "completed_at": int(now())}
    if turn.store or turn.conversation:
        keep(turn, response, turn.call.run_in_transaction)
    return response


def _encode(turn: Turn, response: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(
        [*turn.engine_body["input"][turn.prompt_items :], *responses.drop_results(response)["output"]]
    )
