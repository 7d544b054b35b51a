"""Send an interactive request: from its JSON body to the entries of its answer.

The model's queue is looked up, the request is queued, and its client and the workers are watched until the answer ends.
Where a model of an alias fails before its answer begins, `fallbacks` asks the next one. A client that asked for it may
resume a stream whose connection broke.
"""

import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final, NamedTuple, Protocol

import msgspec
from fastapi import Header, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import State

from api.deps import CallContext, ModelTarget
from api.errors import describe
from api.health.metrics import OTHER
from api.http import sse
from api.http.sse import EVENT_STREAM, KEEP_ALIVE, KeyRevoked, check_key, event_stream
from api.inference import spending
from api.inference.fallbacks import Answer, ask_in_order
from api.inference.request_metrics import RequestMetrics
from api.inference.shadows import ask_shadow
from api.inference.targets import find_alias, find_target, read_rates, rules_of_project, work_of, worker_check
from api.shares import run_unshared
from jobs.clock import now
from jobs.errors import (
    DatabaseBusy,
    InvalidRequest,
    NightmillError,
    RequestTimeout,
    Unauthenticated,
    Unavailable,
    WorkerLost,
)
from jobs.fleet import access
from jobs.fleet.access import Work
from jobs.ids import new_id
from jobs.inference.client import parse_position
from jobs.inference.interactive import TIER_PRIORITIES, AnswerEntry, QueuedRequest, Resumable
from jobs.inference.rate_limiter import RateReservation, Rates
from jobs.inference.responses import COUNT_URL
from jobs.registry.aliases import AliasRouting
from jobs.registry.models import is_tuned
from jobs.requests.endpoints import CHAT, RESPONSES
from jobs.requests.token_estimates import input_tokens, output_tokens
from jobs.requests.values import SERVICE_TIERS
from jobs.security.project_rules import TierRule

#: The URLs whose answers name the service tier that ran them.
_NAMES_TIER: Final = frozenset({CHAT, RESPONSES})
_HEADER_VALUE: Final = re.compile("[!-~]{1,1024}")
#: The header with the id of a stream, by which it can be stopped.
STREAM_HEADER = "X-Nightmill-Stream"
Resume = Annotated[
    int | None,
    Header(
        alias="X-Nightmill-Resume",
        ge=1,
        le=600,
        description="Seconds for which a stream goes on when its connection breaks. Without it, hanging up ends it.",
    ),
]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="The id of the last event seen: only the rest is sent.")
]
JSON_BODY: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"schema": {"type": "object"}}}}}
#: Tools read events as texts of several lines, or as objects with `event`, `id` and `data`: the schema allows both.
JSON_OR_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {**JSON_BODY[200]["content"], EVENT_STREAM: {"schema": {}}}}
}


class InferenceRequest(BaseModel):
    """The field that all interactive requests have. Engines check the others."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    model: str = Field(min_length=1)

    def fields(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_unset=True)


class ClientConnection(Protocol):
    """The connection that a request came over; one over WebSocket has several requests."""

    @property
    def state(self) -> State: ...

    async def is_disconnected(self) -> bool: ...


class GoingDown(Unavailable):
    """An interactive request that this API process cannot finish, because it stops."""

    text = "This server is going down. Ask again."
    code = WorkerLost.code


class TooLate(RequestTimeout):
    """An interactive request that was not answered before its deadline."""

    text = "The model did not answer in time."
    code = "timeout"
    retryable = False


async def submit(
    call: CallContext,
    request: ClientConnection,
    url: str,
    body: Mapping[str, Any],
    *,
    stream: bool,
    endpoint: str | None = None,
    to_queue: Callable[[str], str] | None = None,
    resume: int | None = None,
    shown: bytes = b"",
    seconds: float | None = None,
    prompt: Mapping[str, Any] | None = None,
) -> tuple[AnswerEntry, AsyncGenerator[AnswerEntry]]:
    """Queue a request; return the first entry of its answer that a client has to be sent, and the entries after it.

    The first entry is a `chunk` or the `end`; it is `late` where a stream has no chunk yet and its status has to be
    sent. `endpoint` is the endpoint that the model has to serve, where that is not `url`. `to_queue` turns the name of
    the model's queue into the name of the queue that the request waits in. A stream can be resumed for `resume`
    seconds; `shown` is what another process needs to show the rest of it. The answer is awaited for `seconds`. `prompt`
    is added to the answer of a chat completion.

    Raises NotFound, InvalidRequest, PermissionDenied, RateLimitReached, RequestTimeout, and what
    `InferenceClient.submit` raises.
    """
    if resume and not stream:
        raise InvalidRequest("Only a stream can be resumed.", param="X-Nightmill-Resume", code="unsupported_value")
    with _metrics_of(call, body["model"]).counting_errors():
        work = work_of(call, endpoint or url, body)
        alias = await find_alias(call, work)
        drawn = access.draw(work, alias)
        target = await find_target(call, drawn)
    deadline = now() + (seconds or call.config.interactive_seconds)
    asked = _ClientRequest(
        call,
        request,
        url,
        body,
        work,
        alias,
        stream,
        deadline,
        to_queue,
        linger=resume or 0,
        shown=shown,
        prompt=prompt,
    )
    return await ask_in_order(call, drawn, target, alias.fallback_after if alias else None, asked.ask)


@dataclass(frozen=True, slots=True)
class _ClientRequest:
    """A request of a client for the model that `work` names, which may be an `alias`; see `submit` for its values."""

    call: CallContext
    connection: ClientConnection
    url: str
    body: Mapping[str, Any]
    work: Work
    alias: AliasRouting | None
    stream: bool
    deadline: float
    to_queue: Callable[[str], str] | None
    linger: int
    shown: bytes
    prompt: Mapping[str, Any] | None

    async def ask(self, target: ModelTarget, begins_within: float) -> Answer:
        """Ask a model; return the first entry of its answer that a client has to be sent, and the entries after it.

        Raises NotBegun after `begins_within` seconds, and the errors of `submit`.
        """
        call, url, state = self.call, self.url, self.connection.state
        state.answer_maker, state.rate_headers = None, {}
        model, queue, rates, _ = target
        resolved_model = model if model != self.body["model"] else None
        metrics = _metrics_of(call, self.body["model"])
        if is_tuned(model) or _is_configured(call, model):
            metrics.model = model
        body = {**self.body, "model": model}
        with metrics.counting_errors():
            tier = _tier_of(url, body, (await rules_of_project(call)).tiers)
            raw = msgspec.json.encode({**body, "service_tier": tier.name} if tier.is_named else body)
            reservation = await _reserve(call, self.connection, rates, url, body, len(raw)) if rates else None
        queued = QueuedRequest(
            id=new_id("req_"),
            url=url,
            body=raw,
            tenant=call.project_id,
            deadline=self.deadline,
            stream=self.stream,
            linger=self.linger,
            priority=TIER_PRIORITIES[tier.name],
            request_id=call.request_id,
            key_id=call.caller.key_id,
            tier=tier.name,
        )
        fields = call.project_id, url, self.deadline, self.linger, self.shown, queue, model
        resumable = Resumable(*fields) if self.linger else None
        is_served = worker_check(call, queue, model)
        check_client = _client_check(call, self.connection, self.deadline)
        # until then a lost worker can be answered by a status, on which the SDK retries; later it ends the stream
        is_awaited = not self.stream or begins_within < math.inf  # another model may answer: there is no status yet
        patience = math.inf if is_awaited else call.services.timings.first_chunk_patience
        with metrics.counting_errors():
            try:
                spend = await spending.reserve(call, queued, body) if url != COUNT_URL else None
            except BaseException:  # refused or cancelled: the request takes no tokens
                if reservation:
                    call.services.inference.rates.settle(reservation, 0)
                raise
        entries = call.services.inference.submit(
            self.to_queue(queue) if self.to_queue else queue,
            queued,
            is_served,
            check_client,
            resumable,
            patience,
            begins_within=begins_within,
        )
        entries = metrics.follow(spend.follow(entries) if spend else entries)
        named = {
            **({"service_tier": tier.name} if tier.is_named else {}),
            **({"prompt": self.prompt} if self.prompt else {}),
        }
        entries = _settle(call, reservation, _add_fields(entries, named) if named else entries, len(raw))
        entries = ask_shadow(entries, self.alias, call, self.work, url, body, len(raw))
        while (first := await anext(entries)).kind not in ("chunk", "end", "late"):
            pass
        if (maker := (_maker_of(first) if is_tuned(model) else None) or resolved_model) and _HEADER_VALUE.fullmatch(
            maker
        ):
            state.answer_maker = maker
        return first, entries


def _metrics_of(call: CallContext, name: str) -> RequestMetrics:
    """Return the measures of a request for a name, which is `OTHER` where the models file does not have it."""
    model = name if _is_configured(call, name) else OTHER
    return RequestMetrics(model, partial(call.services.requests.record, call.project_id))


def _is_configured(call: CallContext, model: str) -> bool:
    """Return whether the models file has the name; an endpoint may take any other one. Raises Unavailable."""
    registry = call.services.registry()
    return model in registry.models or model in registry.aliases


class _Made(msgspec.Struct):
    """The fields that name the maker of an answer, in the answer or in the first event of its stream."""

    system_fingerprint: str | None = None
    response: "_Made | None" = None


def _maker_of(entry: AnswerEntry) -> str | None:
    """Return base, adapter and engine of the tuned model that answers; None where the entry does not say."""
    try:
        made = msgspec.json.decode(entry.body, type=_Made)
    except msgspec.MsgspecError:
        return None
    return made.system_fingerprint or (made.response.system_fingerprint if made.response else None)


async def find_stream(call: CallContext, stream_id: str, after: str | None = None) -> Resumable:
    """Return the description of a resumable stream of this project. Raises NotFound, StreamsUnavailable."""
    return await call.services.inference.find_resumable(stream_id, call.project_id, after)


async def resume(
    call: CallContext, request: Request, last: str, url: str
) -> tuple[Resumable, AsyncGenerator[AnswerEntry]]:
    """Return the description of the stream that has the event `last`, and the entries after it.

    Raises InvalidRequest, NotFound, StreamsUnavailable.
    """
    stream_id, after = parse_position(last)
    stream = await find_stream(call, stream_id, after)
    if stream.url != url:
        raise InvalidRequest(f"This event is of a stream of {stream.url}.", param="Last-Event-ID", code="invalid_value")
    check_client = _client_check(call, request, stream.deadline)
    is_served = worker_check(call, stream.queue, stream.model)
    return stream, call.services.inference.resume(stream_id, after, stream, check_client, is_served)


def stream_response(events: AsyncIterator[bytes], at: str = "") -> StreamingResponse:
    """Return the answer that sends `events`. A header names the stream that `at` is a position in."""
    return event_stream(events, {STREAM_HEADER: at.partition("/")[0]} if at else None)


class Events:
    """Write the chunks of an answer as OpenAI does: `data: {chunk}`, the last one `[DONE]`.

    Only resumable streams have event ids: with an id, a client that reconnects would ask for the rest.
    """

    def __init__(self, *, resumable: bool) -> None:
        self._resumable = resumable

    async def of(self, entries: AsyncGenerator[AnswerEntry], first: AnswerEntry | None = None) -> AsyncIterator[bytes]:
        """Yield the events of `first` and `entries`, and of the error that ends them: the status was sent before."""
        async with aclosing(entries):
            try:
                if first is not None and (event := await self.write(first)):
                    yield event
                async for entry in entries:
                    if event := await self.write(entry):
                        yield event
            except NightmillError as error:
                if not (self._resumable and isinstance(error, GoingDown)):  # else the client resumes it
                    yield self.error(describe(error))

    async def write(self, entry: AnswerEntry) -> bytes:
        """Return the event of an entry; nothing where the client is shown none. Raises NightmillError."""
        if entry.kind not in ("chunk", "end"):
            return KEEP_ALIVE
        return sse.event(entry.body or sse.DONE, at=self.event_id(entry))

    def error(self, error: dict[str, Any]) -> bytes:
        """Return the event of an error."""
        return sse.event(error)

    def event_id(self, entry: AnswerEntry) -> str:
        """Return the id of an entry's event, empty where there is none."""
        return entry.position if self._resumable else ""


def plain_response(end: AnswerEntry) -> Response:
    """Return an engine's answer that is not a stream."""
    headers = {} if end.retry_after is None else {"Retry-After": str(max(1, round(end.retry_after)))}
    if end.status == HTTPStatus.REQUEST_TIMEOUT:  # the SDK would retry twice, for as long again
        headers["x-should-retry"] = "false"
    return Response(end.body, end.status, headers, media_type="application/json")


class _Tier(NamedTuple):
    """The service tier of a request; `is_named` where the engine and the answer name it."""

    name: str
    is_named: bool


def _tier_of(url: str, body: Mapping[str, Any], rule: TierRule) -> _Tier:
    """Return the tier of a request. Raises InvalidRequest.

    A value that is no tier reaches the engine, which refuses it.
    """
    requested = body.get("service_tier")
    is_tier = requested in SERVICE_TIERS or (requested is None and rule != TierRule())
    return _Tier(rule.tier_of(requested), is_tier and url in _NAMES_TIER)


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


async def _add_fields(entries: AsyncGenerator[AnswerEntry], fields: Mapping[str, Any]) -> AsyncGenerator[AnswerEntry]:
    """Yield the entries of an answer, with these fields in chat completions, their chunks, and responses."""
    values = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}
    async with aclosing(entries):
        async for entry in entries:
            is_answer = entry.body and entry.kind in ("chunk", "end") and entry.status == 200
            yield msgspec.structs.replace(entry, body=_with_fields(entry.body, values)) if is_answer else entry


def _with_fields(body: bytes, values: Mapping[str, msgspec.Raw]) -> bytes:
    """Return a body with the values in its response, or in the answer that it is; another body as it is."""
    try:
        fields = _decode_fields(body)
    except msgspec.MsgspecError:
        return body
    if "response" in fields:
        fields["response"] = msgspec.Raw(msgspec.json.encode({**_decode_fields(fields["response"]), **values}))
    elif "choices" in fields or "output" in fields:
        fields |= values
    else:
        return body
    return msgspec.json.encode(fields)


async def _reserve(
    call: CallContext, request: ClientConnection, rates: Rates, url: str, body: Mapping[str, Any], size: int
) -> RateReservation:
    """Count a request by the rate limits, and show them in its answer. Raises RateLimitReached, StreamsUnavailable."""
    tokens = input_tokens(size) + output_tokens(url, body)
    reservation = await call.services.inference.rates.reserve(call.project_id, rates, tokens)
    request.state.rate_headers = reservation.headers()
    return reservation


async def count_background(call: CallContext, request: Request, url: str, body: Mapping[str, Any]) -> None:
    """Count a request that a job answers by the rate limits. What it reserves falls by itself.

    Raises RateLimitReached, StreamsUnavailable.
    """
    if rates := await run_unshared(read_rates, call, body["model"]):
        await _reserve(call, request, rates, url, body, len(msgspec.json.encode(body)))


async def _settle(
    call: CallContext, reservation: RateReservation | None, entries: AsyncGenerator[AnswerEntry], size: int
) -> AsyncGenerator[AnswerEntry]:
    """Yield the entries of an answer, and count the tokens that it took where they were reserved.

    An answer without an end has taken the prompt, and a token for each chunk, if a worker had the request.
    """
    used = 0
    try:
        async with aclosing(entries):
            async for entry in entries:
                if entry.kind == "end":
                    used = sum(entry.usage[:1]) + sum(entry.usage[2:3])
                elif entry.kind != "late":
                    used = max(used, input_tokens(size)) + (entry.kind == "chunk")
                yield entry
    finally:
        if reservation is not None:
            call.services.inference.rates.settle(reservation, used)


def _client_check(call: CallContext, request: ClientConnection, deadline: float) -> Callable[[], Awaitable[None]]:
    """Return a check of the client's connection, its key, the deadline and this server.

    The check raises RequestTimeout when the client has gone, TooLate after `deadline`, GoingDown when the server stops,
    and Unauthenticated when the key is no longer valid.
    """
    checked = time.monotonic()

    async def look() -> None:
        nonlocal checked
        if await request.is_disconnected():
            raise RequestTimeout("The client has closed the connection.", code="client_left")
        if call.services.stopping.is_set():
            raise GoingDown
        if now() > deadline:
            raise TooLate
        if time.monotonic() - checked >= call.services.timings.key_look:
            checked = time.monotonic()
            with suppress(DatabaseBusy):
                await run_unshared(_check_key, call)

    return look


def _check_key(call: CallContext) -> None:
    try:
        with call.db.read() as session:
            check_key(session, call)
    except KeyRevoked:
        raise Unauthenticated from None
