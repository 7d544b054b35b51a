"""Any number of OpenAI-compatible servers as one engine.

              ┌ has the model? circuit closed? not paused? a slot free? ── least in flight ──▶ POST
answer ──▶ slot ── none free: wait in a queue (by priority, then order) ◀── a slot is returned, a pause or circuit ends
              └ no server takes requests ──▶ EngineBusy

A server that takes any name is asked only for models that no other server has. An external server is asked only for
projects that allow it: others get 403 where there is no internal one.

refused, no route, 503   next server, else EngineBusy        429   wait as asked, retry, else EngineBusy
401, 402, 407   next server, else EngineBusy: the key or account is refused, not the request
reset, timeout, 408, 409, 425, 5xx, not JSON, too large   EngineFault   other 4xx   Answer with OpenAI's error body
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import aiohttp
import msgspec

from jobs.platform.limiters import acquire_any
from jobs.requests.embedding_prompts import Prompts
from jobs.requests.endpoints import CHAT, EMBEDDINGS, RERANK, RESPONSES, SERVED_WITH
from jobs.timings import Timings
from workers.engines import media, wire
from workers.engines.documented import body_for_server
from workers.engines.encoders.batching import Unacceptable
from workers.engines.http import dialects
from workers.engines.http.endpoints import MAX_PAUSE_SECONDS, Endpoint
from workers.engines.http.http_client import HttpClient, Read, Reply, ServerBusy
from workers.engines.port import Answer, Emit, EngineBusy, EngineFault, Request, Unserved, refusal, unknown_model

TRIES_WHEN_LIMITED: Final = 3  # after as many 429s a request goes back to its worker
CLOSED_SECONDS: Final = 10.0
_CLOSED: Final = frozenset({401, 402, 407})
_PASSING: Final = frozenset({408, 409, 425})  # no fault of the request; OpenAI's SDK retries the first two

log = logging.getLogger(__name__)

Permission = Callable[[str], Awaitable[bool]]  # says of a project's id whether its prompts may go to external servers


class Limited(EngineBusy):
    """The server answered 429."""


async def no_project(_project_id: str) -> bool:
    """Permit no project to use external servers."""
    return False


class HttpEngine:
    """Servers as one engine. `prompts` are those of embedding models, by Nightmill's names."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        timeout: float,
        max_answer_bytes: int = 16 << 20,
        prompts: Mapping[str, Prompts] | None = None,
        allows_external: Permission = no_project,
        refuses_text_images: bool = False,
        timings: Timings | None = None,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._prompts = dict(prompts or {})
        self._make_client = partial(HttpClient, timeout, max_answer_bytes)
        self._client: HttpClient | None = None
        self._allows_external = allows_external
        self._refuses_text_images = refuses_text_images
        self._timings = timings or Timings()
        self._watchers: dict[Endpoint, asyncio.Task[None]] = {}
        self._lists: list[frozenset[str]] = []
        self._models: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        lists = [endpoint.models for endpoint in self.endpoints]
        if lists != self._lists:  # for each request; it hardly ever changes
            self._lists, self._models = lists, tuple(sorted(frozenset[str]().union(*lists)))
        return self._models

    @property
    def discovered_models(self) -> dict[str, bool]:
        """Return the models that servers have listed, and whether only external servers have them."""
        models: dict[str, bool] = {}
        for endpoint in self.endpoints:
            for name in endpoint.models if endpoint.serves is None else ():
                models[name] = models.get(name, True) and bool(endpoint.external)
        return models

    @property
    def is_settled(self) -> bool:
        """Return whether every server has listed its models. If not, a model may still turn up."""
        return all(endpoint.has_models for endpoint in self.endpoints)

    async def start(self) -> None:
        if self._client is not None:
            return
        self._client = self._make_client()
        await self.discover()
        self._watch_all()

    async def close(self) -> None:
        for watcher in self._watchers.values():
            watcher.cancel()
        await asyncio.gather(*self._watchers.values(), return_exceptions=True)
        if self._client:
            await self._client.close()
        self._client, self._watchers = None, {}

    def adopt(self, endpoints: Sequence[Endpoint], prompts: Mapping[str, Prompts]) -> None:
        """Use these servers from now on. A server that was used before keeps its state and its requests.

        The servers left out end their requests; requests that wait for one of them look for another. On the loop.
        """
        left, adopted = list(self.endpoints), []
        for endpoint in endpoints:
            known = next((candidate for candidate in left if candidate.key == endpoint.key), None)
            if known is not None:
                left.remove(known)
                known.serves = endpoint.serves
            adopted.append(known or endpoint)
        self.endpoints, self._prompts = tuple(adopted), dict(prompts)
        for endpoint in left:
            endpoint.circuit.trip()  # and stays open: nothing probes it any more
            endpoint.refuse_waiting()
            if watcher := self._watchers.pop(endpoint, None):
                watcher.cancel()
        if self._client is not None:
            self._watch_all()

    async def discover(self) -> None:
        """List the models of every server whose listing is due."""
        due = [endpoint for endpoint in self.endpoints if endpoint.is_listing_due(self._timings)]
        await asyncio.gather(*map(self._open_client.list_models, due))

    def _watch_all(self) -> None:
        for endpoint in self.endpoints:
            if endpoint not in self._watchers:
                self._watchers[endpoint] = asyncio.create_task(self._watch(self._open_client, endpoint))

    async def _watch(self, client: HttpClient, endpoint: Endpoint) -> None:
        while True:
            await asyncio.sleep(self._timings.http_watch)
            if endpoint.is_listing_due(self._timings):
                await client.list_models(endpoint)

    @property
    def _open_client(self) -> HttpClient:
        assert self._client, "start() comes first"
        return self._client

    # -- one request

    async def answer(self, request: Request) -> Answer:
        if request.url in SERVED_WITH:
            return refusal(400, "Only an engine of this deployment can answer this.", param="model")
        if request.url == EMBEDDINGS:
            try:
                request = dialects.for_server(request, self._prompts.get(str(request.body.get("model"))))
            except Unacceptable as wrong:
                return wrong.answer
        answer = await self._ask(request, None)
        if answer.status != 200 or request.url not in (CHAT, RESPONSES):
            return answer
        body = wire.complete(request.url, answer.body, request.body)
        return answer if body is answer.body else Answer(answer.status, body, answer.usage)

    async def stream(self, request: Request, emit: Emit) -> Answer:
        """Emit server-sent events, until `[DONE]`. The answer of a server that does not stream is emitted as events."""
        usage = wire.wants_usage(request.body)

        async def read(response: aiohttp.ClientResponse, renew: Callable[[], None]) -> bytes:
            client = self._open_client
            if response.status != 200 or response.content_type != wire.EVENT_STREAM:
                return await client.read(response)
            async for event in wire.events(wire.lines(response.content.iter_any(), client.max_bytes)):
                renew()
                await emit(wire.add_null_usage(event) if usage else event)
            return wire.STREAMED

        answer = await self._ask(replace(request, body={**request.body, "stream": True}), read)
        events = (
            wire.events_of_answer(request.url, answer.body, request.body)
            if answer.status == 200 and answer.body
            else []
        )
        for event in events:
            await emit(event)
        return Answer(200, b"", answer.usage) if events else answer

    async def _ask(self, request: Request, read: Read | None) -> Answer:
        model = str(request.body.get("model"))
        having = self._servers_of(model)
        if not having:
            return self._refuse_model(model)
        outside = not any(endpoint.external for endpoint in having) or await self._allows_external(request.tenant)
        able = [endpoint for endpoint in having if outside or not endpoint.external]
        if not able:
            return self._forbidden(model)
        if self._refuses_text_images and (refused := media.find_images(request.body)):
            return refused
        able = self._without_refusals(model, able)
        limited = 0
        while True:
            endpoint = await self._acquire(request.priority, able)
            try:
                return await self._send(endpoint, request, model, read)
            except ServerBusy as refused:
                able.remove(endpoint)
                if not able:
                    raise EngineBusy(str(refused), refused.retry_after) from refused
            except Limited as error:
                limited += 1
                await self._back_off(error, limited)

    def _servers_of(self, model: str) -> list[Endpoint]:
        """Return the servers that have the model by name, else those that take any name."""
        named = [endpoint for endpoint in self.endpoints if endpoint.upstream(model)]
        return named or [endpoint for endpoint in self.endpoints if endpoint.takes_any]

    def _without_refusals(self, model: str, able: list[Endpoint]) -> list[Endpoint]:
        """Leave out the servers that refuse the key. Raises EngineBusy when none is left."""
        left = [endpoint for endpoint in able if not endpoint.refusing or not endpoint.refuses(model)]
        if not left:
            wait = min(endpoint.refuses(model) for endpoint in able)
            raise EngineBusy("No endpoint of this model takes our key.", retry_after=wait)
        return left

    def _forbidden(self, model: str) -> Answer:
        """Refuse a model that only external servers have, unless an internal one may still turn out to have it."""
        if not all(endpoint.has_models or endpoint.external for endpoint in self.endpoints):
            raise Unserved(f"No reachable internal endpoint serves the model `{model}`.", retry_after=1.0)
        message = f"The model `{model}` runs outside this deployment, which the project does not allow."
        return refusal(403, message, code="external_model_not_allowed", param="model")

    def _refuse_model(self, model: str) -> Answer:
        if self.is_settled:
            return unknown_model(model)
        raise Unserved(f"No reachable endpoint serves the model `{model}`.", retry_after=1.0)

    async def _back_off(self, limited: Limited, times: int) -> None:
        """Wait before a further try.

        A pause that the server asked for is waited for in the queue: another request may end it.
        """
        if times >= TRIES_WHEN_LIMITED or (limited.retry_after or 0) > MAX_PAUSE_SECONDS:
            raise EngineBusy(str(limited), limited.retry_after) from limited
        if limited.retry_after is None:
            await asyncio.sleep(self._timings.http_first_backoff * 2**times)

    async def _acquire(self, priority: int, able: list[Endpoint]) -> Endpoint:
        """Take a slot of the least busy server that takes requests; wait for one where all are full."""
        while True:
            for endpoint in sorted(able, key=_in_flight) if len(able) > 1 else able:
                if endpoint.takes_requests and endpoint.slots.try_acquire():
                    return endpoint
            self._expect(able)
            for endpoint in able:
                endpoint.admit()
            slots = await acquire_any([endpoint.slots for endpoint in able], priority=priority)
            for endpoint in able:
                if endpoint.slots is slots:
                    return endpoint

    def _expect(self, able: list[Endpoint]) -> None:
        """Raise EngineBusy where waiting is useless: no server is only full, or pauses only for a moment."""
        for endpoint in able:
            if endpoint.circuit.is_closed and endpoint.pause <= MAX_PAUSE_SECONDS:
                return
        wait = max(min(endpoint.wait() for endpoint in able), self._timings.http_watch)
        raise EngineBusy("No endpoint of this model takes requests now.", retry_after=wait)

    async def _send(self, endpoint: Endpoint, request: Request, model: str, read: Read | None) -> Answer:
        """Send a request to the server whose slot was taken, and return the slot."""
        try:
            if endpoint.external and not await self._allows_external(request.tenant):  # it may have waited
                raise ServerBusy("The project does not allow external endpoints any more.")
            salt = request.tenant if endpoint.of_vllm else ""
            body = body_for_server(request.body, endpoint.upstream(model) or model, salt)
            cuts = endpoint.window.cuts

            def post(path: str, data: bytes) -> Awaitable[Reply]:
                return self._open_client.post(endpoint, path, data, request.request_id, read)

            if request.url == RERANK:
                reply = await dialects.rerank(endpoint, body, post)
            else:
                reply = await post(request.url, msgspec.json.encode(body))
            return _judge(endpoint, model, cuts, reply)
        finally:
            endpoint.release()


def _in_flight(endpoint: Endpoint) -> float:
    return endpoint.slots.used


def _judge(endpoint: Endpoint, model: str, cuts: int, reply: Reply) -> Answer:
    """Return an answer, or raise what makes the request retry, and note the server's health on `endpoint`."""
    status, retry_after, raw = reply
    if status in {429, 503}:
        pause = wire.retry_after(retry_after)
        endpoint.slow_down(cuts, pause)
        raise (Limited if status == 429 else ServerBusy)(f"The endpoint answered {status}.", pause)
    if status in _CLOSED:  # its text is not passed on: it may quote a part of the key
        if not endpoint.refuses(model):
            log.error("engine.refuses_our_key", extra={"endpoint": endpoint.url, "model": model, "status": status})
        pause = endpoint.note_refusal(model, wire.retry_after(retry_after) or CLOSED_SECONDS)
        raise ServerBusy(f"The endpoint refuses our key ({status}).", pause)
    if status in {502, 504}:  # a proxy that lost its server
        endpoint.fail(f"status {status}")
    else:
        endpoint.circuit.succeed()
    if status >= 500 or status in _PASSING:
        raise EngineFault(f"The endpoint answered {status}.", Answer(status, wire.error_body(status, raw)))
    endpoint.window.grow(endpoint.slots.used)
    return wire.answer_of(status, raw)
