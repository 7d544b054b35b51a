"""Serve a response as the events of its stream.

    interactive   chunks of the engine ─▶ with Nightmill's ids ─▶ client; stored before the last event is sent
    background    queued ─▶ `created`, `queued`           running ─▶ the events that its worker publishes over Redis
    ended         the rest of the events, or the whole response written out as events

An attempt at a background response starts over when its worker died. The events of the new attempt are sent from its
`response.created` on, if no item of the output was begun before. Otherwise none of them is sent, because the SDK's
helper breaks where an item is begun twice: the stream waits for the end of the response. The helper also needs every
item to end. So each item that was begun ends as it is in the completed answer, or as `incomplete` where the answer
does not have it.

Every stream ends when the API key that opened it is revoked.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response

from api.deps import CallContext
from api.http import sse
from api.http.sse import KEEP_ALIVE, check_key, stop_on_revocation
from api.inference import stored_answers
from api.inference.interactive import ClientConnection, Events, plain_response, resume, stream_response, submit
from api.inference.prompts import UsedPrompt
from api.inference.turns import CreateResponse, Turn, decode_answer, invalid_answer, keep
from api.shares import run_in_threadpool
from jobs.errors import DatabaseBusy, InvalidRequest, NotFound, StorageUnavailable, StreamsUnavailable
from jobs.inference import responses
from jobs.inference.answer_events import events_of_response
from jobs.inference.client import second_of
from jobs.inference.interactive import AnswerEntry
from jobs.inference.stored import StoredAnswer
from jobs.requests.endpoints import RESPONSES


class _Shown(msgspec.Struct):
    """The parts of a `Turn` that the API process needs which shows the rest of a resumable stream.

    `body` is the client's request without its `input`, which `asked` holds.
    """

    id: str
    body: dict[str, Any]
    engine_body: dict[str, Any]
    asked: list[dict[str, Any]]
    prompt: UsedPrompt | None = None


def check_resumable(body: CreateResponse) -> None:
    """Refuse a request that cannot be resumed. Raises InvalidRequest."""
    if body.store is False and body.conversation:  # a resumed stream could not tell whether its items were added
        message = "With a conversation, a stream that can be resumed is kept."
        raise InvalidRequest(message, param="store", code="unsupported_value")
    if not body.stream:
        raise InvalidRequest("Only a stream can be resumed.", param="X-Nightmill-Resume", code="unsupported_value")
    if body.background:
        message = "What runs in the background goes on anyway."
        raise InvalidRequest(message, param="X-Nightmill-Resume", code="unsupported_value")


async def answer(turn: Turn, request: Request, seconds: int | None) -> Response:
    """Return a stream, or the engine's refusal.

    The client may resume the stream for `seconds`; None stands for a stream that cannot be resumed.
    """
    shown = _pack(turn) if seconds else b""
    first, entries = await submit(
        turn.call, request, RESPONSES, turn.engine_body, stream=True, resume=seconds, shown=shown
    )
    if first.kind == "end":
        await entries.aclose()
        if first.status == 200:  # an answer, but no stream
            raise invalid_answer()
        return plain_response(first)
    return stream_response(_ResponseEvents(turn, resumable=bool(seconds)).of(entries, first), first.position)


async def event_objects(turn: Turn, client: ClientConnection) -> AsyncGenerator[dict[str, Any]]:
    """Yield the events of a response as objects; the last one ends the response, or is the engine's refusal.

    Raises: NightmillError.
    """
    entry, entries = await submit(turn.call, client, RESPONSES, turn.engine_body, stream=True)
    number, has_ended = 0, False
    async with aclosing(entries):
        while entry.kind != "end":
            if entry.kind == "chunk":
                event = await _public_event(turn, entry, number, resumable=False)
                number = event["sequence_number"] + 1
                has_ended = has_ended or event.get("type") in responses.FINAL
                yield event
            entry = await anext(entries)
    if entry.status != 200:
        yield _refusal_event(entry)
    elif not has_ended:
        raise invalid_answer()


def _refusal_event(end: AnswerEntry) -> dict[str, Any]:
    error = {"type": "server_error", "param": None, "code": None, **_error_of(decode_answer(end.body))}
    if end.retry_after is not None:
        error["headers"] = {"retry-after": str(max(1, round(end.retry_after)))}
    return {"type": "error", "status": end.status, "error": error}


def _pack(turn: Turn) -> bytes:
    body = {name: value for name, value in turn.body.fields().items() if name != "input"}
    return msgspec.json.encode(_Shown(turn.id, body, turn.engine_body, turn.asked, turn.prompt))


async def resume_events(call: CallContext, request: Request, last: str) -> Response:
    """Return the stream of the events after the event `last`, which the client has seen.

    Raises: InvalidRequest, NotFound, StreamsUnavailable.
    """
    stream, entries = await resume(call, request, last, RESPONSES)
    shown = msgspec.json.decode(stream.shown, type=_Shown)
    body = CreateResponse.model_validate_json(msgspec.json.encode({**shown.body, "input": shown.asked}))
    turn = Turn(call, body, shown.engine_body, shown.asked, shown.id, shown.prompt)
    return stream_response(_ResponseEvents(turn, resumable=True).of(entries), last)


class _ResponseEvents(Events):
    """Write events with their names; there is no `[DONE]`."""

    def __init__(self, turn: Turn, *, resumable: bool) -> None:
        super().__init__(resumable=resumable)
        self._turn = turn
        self._number = 0  # of the next event

    async def write(self, entry: AnswerEntry) -> bytes:
        if entry.kind == "chunk":
            event = await _public_event(self._turn, entry, self._number, resumable=self._resumable)
            self._number = event["sequence_number"] + 1
            return sse.event(event, kind=str(event.get("type", "message")), at=self.event_id(entry))
        if entry.kind != "end":
            return sse.KEEP_ALIVE
        return self.error(decode_answer(entry.body), self.event_id(entry)) if entry.body else b""

    def error(self, error: Any, at: str = "") -> bytes:
        return sse.event(_error(error, self._number), kind="error", at=at)


async def _public_event(turn: Turn, entry: AnswerEntry, number: int, *, resumable: bool) -> dict[str, Any]:
    """Return an engine's event as the client is shown it; store the response of the last one.

    Raises NightmillError for data that is no event.
    """
    event = decode_answer(entry.body)
    if not isinstance(event, dict):
        raise invalid_answer()
    last = event.get("type") in responses.FINAL
    if last and not responses.is_response(event.get("response")):
        raise invalid_answer()
    at = second_of(entry.position)  # the same however often the stream is resumed
    event = responses.to_public_event(event, turn.own_fields, turn.engine_body, at, number)
    if last and (turn.store or turn.conversation):
        await run_in_threadpool(_keep, turn, event["response"], resumable=resumable)
    return turn.filter_results(event)


def _keep(turn: Turn, response: dict[str, Any], *, resumable: bool) -> None:
    """Store the response, unless another connection of its stream has."""
    if resumable:
        stored_answers.STORED_RESPONSES.once(turn.call, turn.id, partial(keep, turn, response))
    else:
        keep(turn, response, turn.call.run_in_transaction)


def _error(event: Any, number: int) -> dict[str, Any]:
    error = _error_of(event)
    fields = {name: error.get(name) for name in ("code", "message", "param")}
    return {"type": "error", **fields, "sequence_number": number}


def _error_of(body: Any) -> dict[str, Any]:
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {"message": "The engine gave no answer.", "code": "engine_error"}


_LIVE = frozenset({"queued", "in_progress"})
_ENDED = frozenset({"completed", "incomplete", "failed"})


async def follow(
    call: CallContext, request: Request, stored_answer: StoredAnswer, after: int, *, results: bool
) -> AsyncIterator[bytes]:
    """Yield server-sent events with a `sequence_number` above `after`, until the response ends or the client leaves.

    With `results`, file searches include their results.
    """
    following = _Following(call, stored_answer, after, results)
    with suppress(NotFound):  # deleted meanwhile: the stream ends
        async for event in stop_on_revocation(following.events()):
            yield event
            if call.services.stopping.is_set() or (event is KEEP_ALIVE and await request.is_disconnected()):
                return


class _Following:
    """The stream of one background response for one client: its state from SQL, its events from Redis."""

    def __init__(self, call: CallContext, stored_answer: StoredAnswer, after: int, results: bool) -> None:
        self._call, self._seen, self._results = call, after, results
        self._request, self._response = stored_answer.request, stored_answer.response
        self._id = str(stored_answer.response["id"])
        self._position = "0-0"
        self._has_published = False  # whether its worker has published events
        self._items = _Items()
        self._timings = call.services.timings

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events. Raises NotFound, KeyRevoked."""
        for event in self._first_events():
            yield self._event(event)
        last_sent = time.monotonic()
        live = True
        while live:
            live = _status(self._response) in _LIVE
            async for published in self._new_events():  # read after the ledger: of an ended response these are all
                last_sent = time.monotonic()
                yield published
            if live and time.monotonic() - last_sent >= self._timings.response_keep_alive:
                last_sent = time.monotonic()
                yield KEEP_ALIVE
            if live:
                await self._look()
        for event in self._end():
            yield self._event(event)

    def _first_events(self) -> list[dict[str, Any]]:
        """Return the events before a worker publishes any; an ended response has them in what is written out."""
        if _status(self._response) not in _LIVE:
            return []
        kinds = list(enumerate(("response.created", "response.queued")))[self._seen + 1 :]
        return [{"type": kind, "response": dict(self._response), "sequence_number": n} for n, kind in kinds]

    def _end(self) -> list[dict[str, Any]]:
        """Return the last event; where no events were published, all events of the written-out response.

        Published events have far higher numbers than written-out ones: see `responses.numbered`.
        """
        response, status = self._response, _status(self._response)
        if status not in _ENDED:  # cancelled: OpenAI has no event for it
            return []
        written = [] if self._has_published else events_of_response(response)
        left = [event for event in written if event["sequence_number"] > self._seen]
        if left:
            return left
        last = {"type": f"response.{status}", "response": dict(response)}
        ends = [*(self._items.ends(response) if status == "completed" else ()), last]
        return [{**event, "sequence_number": self._seen + n} for n, event in enumerate(ends, 1)]

    async def _new_events(self) -> AsyncIterator[bytes]:
        """Yield the events that the worker has published since the last call; wait a moment if there are none."""
        while True:
            try:
                entries = await self._call.services.inference.read_events(
                    self._id, self._position, self._timings.response_look
                )
            except StreamsUnavailable:
                entries = None
            for position, body in entries or ():
                self._position, self._has_published = position, True
                event = responses.to_public_event(msgspec.json.decode(body), self._response, self._request)
                if self._items.is_shown(event) and event["sequence_number"] > self._seen:
                    yield self._event(event)
            if not entries:
                return

    async def _look(self) -> None:
        """Read the response's current state; keep the last one while the database or storage is unavailable.

        Raises NotFound, KeyRevoked.
        """
        with suppress(DatabaseBusy, StorageUnavailable):
            self._response = await run_in_threadpool(self._read)

    def _read(self) -> dict[str, Any]:
        """Read the status from SQL; read the whole response from storage once it has ended. Called twice a second.

        Raises NotFound, KeyRevoked.
        """
        with self._call.db.read() as session:
            check_key(session, self._call)
            status = stored_answers.response_status(session, self._call, self._id)
        if status in _LIVE:
            return {**self._response, "status": status}
        return stored_answers.load_response(self._call, self._id).response

    def _event(self, event: dict[str, Any]) -> bytes:
        self._seen = int(event["sequence_number"])
        shown = event if self._results else responses.drop_results(event)
        return sse.event(shown, kind=event["type"])


class _Items:
    """The items of the output that were begun, as the worker's events say."""

    def __init__(self) -> None:
        self._number = -1
        self._any = self._again = False
        self._open: dict[int, dict[str, Any]] = {}

    def is_shown(self, event: Mapping[str, Any]) -> bool:
        """Return whether an event is shown, and note the items that it begins or ends.

        Not shown are late events of an earlier attempt, and the events of a new attempt after an item was begun.
        """
        if event["sequence_number"] <= self._number:
            return False
        self._number = event["sequence_number"]
        self._again = self._again or (self._any and event["type"] == "response.created")
        if self._again:
            return False
        if event["type"] == "response.output_item.added":
            self._any = True
            self._open[event["output_index"]] = event["item"]
        elif event["type"] == "response.output_item.done":
            self._open.pop(event["output_index"], None)
        return True

    def ends(self, response: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the end events of the items that were begun: as in the answer, or incomplete."""
        answered = {item.get("id"): item for item in response["output"]}
        return [
            {
                "type": "response.output_item.done",
                "output_index": index,
                "item": answered.get(item["id"]) or {**item, "status": "incomplete"},
            }
            for index, item in self._open.items()
        ]


def _status(response: Mapping[str, Any]) -> str:
    return str(response.get("status") or "completed")
