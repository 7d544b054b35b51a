"""Answer background responses: publish their events while the engine streams, and store the answer of the line.

    engine.stream ──▶ events ──XADD──▶ answer:<response> ──▶ API ──▶ clients
          └── the last one ──▶ the line's answer ──▶ ledger, which alone decides how it ended

    claim ─▶ the record ─┬─ an answer ─▶ the stored object, durable ─▶ succeeded
                         ├─ a refusal, or none after all tries ─▶ the engine's error in the object ─▶ failed
                         └─ not run (cancelled, expired) ─▶ the state that says so

Publishing is optional: the response is also answered without Redis, where Redis has no memory to spare or the project
holds too much of it, and when the stream is long. An attempt that starts over publishes its events again, from
`response.created`, under higher numbers.

The object is written before the job's state, so that a client that sees the end finds the object. A response that was
deleted meanwhile ends quietly, and its files are removed here, or by a later deletion, which finds the job ended.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError
from sqlalchemy import select, update

from jobs.errors import NotFound, StorageFull, StorageUnavailable
from jobs.inference import admission, responses
from jobs.inference.admission import BLOCK, MemoryProbe, count_block, max_stream_bytes
from jobs.inference.interactive import (
    BACKGROUND_SECONDS,
    ENDED_SECONDS,
    ENTRY_FIELD,
    AnswerEntry,
    answer_key,
    connect,
    pack,
    redis_url,
)
from jobs.inference.responses import FINAL, INCOMPLETE, Response, event_number
from jobs.inference.stored import StoredAnswer, decode, encode
from jobs.inference.tables import StoredResponse
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import JobState
from jobs.ledger.tables import TOKENS, Segment
from jobs.requests.endpoints import RESPONSES
from jobs.settings import Settings
from jobs.timings import Timings
from workers.batches.running import LineRun, read_items
from workers.engines.port import Answer, EngineFault, Request
from workers.engines.wire import usage_of
from workers.runtime import outcomes, output_lines
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost
from workers.runtime.heartbeat import ClaimHandle
from workers.runtime.output_lines import Item, LineRecord

log = logging.getLogger(__name__)
_MAX_EVENTS: Final = 16_384  # limit of the published events of one attempt
_EVENTS_AT_ONCE: Final = 64  # events in one round trip


class EventPublisher:
    """Publish the events of one attempt at one response."""

    def __init__(
        self, host: EngineHost, config: Settings, response_id: str, epoch: int, timings: Timings = Timings()
    ) -> None:
        self._host, self._config, self._url = host, config, redis_url(config)
        self._id, self._name, self._epoch = response_id, answer_key(response_id), epoch
        self._events: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._published = self._bytes = self._counted = 0
        self._patience = timings.events_patience
        self._last: Any = None

    async def answer(self, request: Request) -> Answer:
        """Answer a request, and publish its events. Raises what an engine raises."""
        if not self._url:
            return await self._host.engine.answer(request)
        self._last = None  # of an earlier try
        self._events = asyncio.Queue()  # without events of an earlier try that were not published
        publishing = asyncio.create_task(self._publish(request.tenant))
        try:
            answer = await self._host.engine.stream(request, self._emit)
        finally:
            self._events.put_nowait(None)
            _, late = await asyncio.wait({publishing}, timeout=self._patience)  # after a cancellation it ends by itself
            for task in late:
                task.cancel()
        if answer.status != 200 or answer.body:
            return answer
        if self._last is None:
            raise EngineFault("The stream ended without its response.")
        body = msgspec.json.encode(self._last)
        return Answer(200, body, usage_of(body))

    async def _emit(self, chunk: bytes) -> None:
        event: dict[str, Any] = msgspec.json.decode(chunk)
        if event.get("type") in FINAL:
            self._last = event.get("response")
        elif self._published < _MAX_EVENTS:
            numbered_event = {**event, "sequence_number": event_number(self._epoch, self._published)}
            self._published += 1
            self._events.put_nowait(msgspec.json.encode(numbered_event))

    async def _publish(self, tenant: str) -> None:
        """Publish the events, in a task of its own.

        redis-py swallows a cancellation now and then, and that of `answer` must stop the engine.
        """
        async with connect(self._url) as server:
            memory = MemoryProbe(server)
            try:
                while events := await self._next_events():
                    async with asyncio.timeout(self._patience):
                        if not await self._has_room(server, memory, tenant, events):
                            self._published = _MAX_EVENTS
                            log.info("response_events_stopped", extra={"response": self._id})
                            break
                        await self._write(server, events)
                async with asyncio.timeout(self._patience):
                    await server.expire(self._name, ENDED_SECONDS)  # the stream has ended; the server's memory is small
            except (RedisError, OSError) as error:
                self._published = _MAX_EVENTS  # a gap would be worse than an early end
                log.warning("response_events_failed", extra={"error": str(error)})

    async def _has_room(self, server: Any, memory: MemoryProbe, tenant: str, events: Sequence[bytes]) -> bool:
        """Count these events, and return whether Redis may hold them. Raises RedisError, OSError."""
        self._bytes += sum(map(len, events))
        if self._bytes > admission.MAX_UNREAD_BYTES or await memory.is_full():
            return False
        while self._counted < self._bytes:
            if not await count_block(server, tenant, self._id, max_stream_bytes(self._config)):
                return False
            self._counted += BLOCK
        return True

    async def _next_events(self) -> list[bytes]:
        """Return the next events as soon as there is one; none at the end."""
        events = []
        event = await self._events.get()
        while event is not None:
            events.append(event)
            if len(events) == _EVENTS_AT_ONCE or self._events.empty():
                return events
            event = self._events.get_nowait()
        if events:
            self._events.put_nowait(None)  # the end mark again
        return events

    async def _write(self, server: Any, events: Sequence[bytes]) -> None:
        async with server.pipeline(transaction=False) as pipe:
            for event in events:
                pipe.xadd(self._name, {ENTRY_FIELD: pack(AnswerEntry("chunk", event))})
            pipe.expire(self._name, BACKGROUND_SECONDS)
            await pipe.execute()


class ResponseRun(LineRun):
    """A claim on the only shard of a response."""

    ends_at_once = False  # `respond` ends the job

    def read(self) -> tuple[list[Item], list[LineRecord]]:
        """Take the line as it is: the API checked it, and it may continue a conversation."""
        return read_items(self.context, self.claim, None)

    def answer_function(self) -> Callable[[Request], Awaitable[Answer]] | None:
        """Return the function that publishes events, if the response was requested with `stream`."""
        job = self.claim.job
        if not Response.model_validate(job.payload).stream:
            return None
        return EventPublisher(self.host, self.context.config, job.id, self.claim.epoch, self.context.timings).answer


def respond(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    """Bring the claimed job to its end. Raises ClaimLost, StorageFull, StorageUnavailable."""
    with context.db.read() as session:
        segment = session.scalars(select(Segment).where(Segment.job_id == claim.job.id)).first()
        is_stored = session.get(StoredResponse, claim.job.id) is not None
    if segment is None:  # the line was not run: cancelled or expired
        _close(context, claim, {})
        return
    good = any(segment.good)
    counts = segment.outcomes or {}
    values = {name: getattr(segment, name) for name in TOKENS} | {"completed": int(good), "failed": int(not good)}
    if claim.job.state != JobState.FINISHING or not is_stored:  # stopped shortly before its end, or deleted
        _close(context, claim, values, counts)
        _remove(context, f"jobs/{claim.job.id}")  # no client can read it
        return
    with context.storage.reader(segment.path) as handle:
        _, _, line = output_lines.parse(handle.read(segment.length).rstrip(b"\n"))
    output_line = msgspec.json.decode(line)
    stored_answer, ended = _object(context, claim.job.id), int(segment.created_at)
    answer: Any = output_line["response"]["body"] if good else None
    if stored_answer is None:
        _close(context, claim, values, counts)
    elif not responses.is_response(answer):
        _fail(context, claim, values, counts, stored_answer, output_line)
    else:
        _write(
            context,
            replace(
                stored_answer,
                response=responses.to_public(answer, stored_answer.response, stored_answer.request, ended),
            ),
        )
        incomplete = answer.get("status") == "incomplete"
        _close(context, claim, values, counts, INCOMPLETE if incomplete else None)
    with context.db.read() as session:
        is_stored = session.get(StoredResponse, claim.job.id) is not None
    if not is_stored:
        _remove(context, responses.path(claim.job.id), f"jobs/{claim.job.id}")


def _object(context: Context, response_id: str) -> StoredAnswer | None:
    """Return the stored object, None when it was deleted."""
    try:
        with context.storage.reader(responses.path(response_id)) as handle:
            return decode(handle.read())
    except NotFound:
        return None


def _remove(context: Context, *paths: str) -> None:
    """Delete files; retention removes what storage cannot delete now."""
    for path in paths:
        with suppress(StorageUnavailable, StorageFull):
            context.storage.delete(path)


def _write(context: Context, stored_answer: StoredAnswer) -> None:
    """Write the object of a response, and its size into the row."""
    response_id, data = str(stored_answer.response["id"]), encode(RESPONSES, stored_answer)
    context.storage.put(responses.path(response_id), data)
    sized = update(StoredResponse).where(StoredResponse.id == response_id).values(bytes=len(data))
    context.db.retrying(lambda session: session.execute(sized))


def _close(
    context: Context,
    claim: JobClaim,
    values: Mapping[str, Any],
    counts: Mapping[str, int] = {},
    event: str | None = None,
) -> None:
    context.db.retrying(lambda session: ledger.close(session, claim, values, [], counts, event=event))
    log.info("response_closed", extra={"job_id": claim.job.id})


def _fail(
    context: Context,
    claim: JobClaim,
    values: Mapping[str, Any],
    counts: Mapping[str, int],
    stored_answer: StoredAnswer,
    output_line: Mapping[str, Any],
) -> None:
    """Fail the job.

    The engine's error may quote the prompt: it goes into the object, and its code alone into the ledger.
    """
    error = _error(output_line)
    code = outcomes.word(error.get("code")) or "engine_error"
    _write(context, replace(stored_answer, response={**stored_answer.response, "error": responses.error_of(error)}))
    errors = [{"code": code, "message": "The engine gave no response.", "param": None, "line": None}]
    context.db.retrying(lambda session: ledger.close(session, claim, values, [], counts, errors=errors))
    log.info("response_failed", extra={"job_id": claim.job.id, "code": code})


def _error(output_line: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the engine's error, or one that says that its answer is not a response."""
    body = (output_line["response"] or {}).get("body")
    error = output_line["error"] or (body.get("error") if isinstance(body, dict) else None)
    return error if isinstance(error, dict) else {"message": "The engine's answer is not a response."}
