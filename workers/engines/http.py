"""Any number of OpenAI-compatible servers as one engine.

              ┌ has the model? circuit closed? not paused? a slot free? ── least in flight ──▶ POST
answer ──▶ admit ── none free: wait in line (by priority, then order) ◀── a slot, a window, a circuit opens up
              └ none left ──▶ EngineBusy

A server that takes any name is asked only for models that no other server has. An external server is asked only for
projects that allow it: others get 403 where there is no internal one.

refused, no route, 503   next server, else EngineBusy        429   wait as told, try again, else EngineBusy
401, 402, 407   next server, else EngineBusy: it is our key or account that is refused, not the request
reset, timeout, 408, 409, 425, 5xx, not JSON, too large   EngineFault   other 4xx   Answer with OpenAI's error body
"""

import asyncio
import heapq
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import aiohttp
import msgspec

from jobs.requests.endpoints import EMBEDDINGS, RERANK
from jobs.requests.prompts import Prompts
from workers.engines import embed_forward, listing, media, rerank_tei, wire
from workers.engines.documented import forwarded
from workers.engines.encoders.batching import Unacceptable
from workers.engines.endpoints import Endpoint
from workers.engines.port import Answer, Emit, EngineBusy, EngineFault, Request, Unserved, refusal, unknown_model
from workers.engines.rerank_tei import Said

CONNECT_SECONDS: Final = 5.0
KEEPALIVE_SECONDS: Final = 4.0  # below the 5 s after which uvicorn closes: a request never meets a dying connection
WATCH_SECONDS: Final = 0.25
TRIES_WHEN_LIMITED: Final = 3  # a request that got 429 this often goes back to its worker
LONGEST_PAUSE_SECONDS: Final = 5.0  # a longer Retry-After is the worker's to wait
FIRST_BACKOFF_SECONDS: Final = 0.25
CLOSED_SECONDS: Final = 10.0
_CLOSED: Final = frozenset({401, 402, 407})
_PASSING: Final = frozenset({408, 409, 425})  # no fault of the request; OpenAI's SDK tries the first two again

log = logging.getLogger(__name__)

Ticket = tuple[int, int, asyncio.Future[None]]  # a request's priority, its order, and what ends its wait
Read = Callable[[aiohttp.ClientResponse], Awaitable[bytes]]
Permission = Callable[[str], Awaitable[bool]]  # of a project's id: whether its prompts may go to external servers
Line = frozenset[Endpoint]  # the servers that each request in it may be sent to


class Refused(EngineBusy):
    """One server didn't take the request; another one may."""


class Limited(EngineBusy):
    """The server answered 429."""


async def no_project(_project_id: str) -> bool:
    """Permit no project to use external servers."""
    return False


class HttpEngine:
    """`prompts` are those of embedding models, by our names."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        timeout: float,
        max_answer_bytes: int = 16 << 20,
        prompts: Mapping[str, Prompts] | None = None,
        allows_external: Permission = no_project,
        refuses_text_images: bool = False,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._prompts = dict(prompts or {})
        self._timeout, self._max_bytes = timeout, max_answer_bytes
        self._allows_external = allows_external
        self._refuses_text_images = refuses_text_images
        self._session: aiohttp.ClientSession | None = None
        self._watchers: dict[Endpoint, asyncio.Task[None]] = {}
        self._waiting: dict[Line, list[Ticket]] = {}
        self._order = itertools.count()
        self._lists: list[frozenset[str]] = []
        self._models: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        lists = [endpoint.models for endpoint in self.endpoints]
        if lists != self._lists:  # asked for each request, changed hardly ever
            self._lists, self._models = lists, tuple(sorted(frozenset[str]().union(*lists)))
        return self._models

    @property
    def discovered(self) -> dict[str, bool]:
        """Models that servers have shown of themselves, and whether only external servers have them."""
        found: dict[str, bool] = {}
        for endpoint in self.endpoints:
            for name in endpoint.models if endpoint.serves is None else ():
                found[name] = found.get(name, True) and bool(endpoint.external)
        return found

    @property
    def settled(self) -> bool:
        """Does each server's list of models stand? If not, a model may still turn up."""
        return all(endpoint.known for endpoint in self.endpoints)

    async def start(self) -> None:
        if self._session is not None:
            return
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                "Content-Type": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": "nightmill",
            },
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=min(CONNECT_SECONDS, self._timeout / 2)),
            trust_env=False,
        )
        await self.discover()
        self._watch_all()

    async def close(self) -> None:
        for watcher in self._watchers.values():
            watcher.cancel()
        await asyncio.gather(*self._watchers.values(), return_exceptions=True)
        if self._session:
            await self._session.close()
        self._session, self._watchers = None, {}

    def adopt(self, endpoints: Sequence[Endpoint], prompts: Mapping[str, Prompts]) -> None:
        """Serve by these servers from now on, on the loop. One that it has goes on as it is, with what it is at.

        What one of the others is at it ends; who waits in line for it looks for another.
        """
        left, found = list(self.endpoints), []
        for endpoint in endpoints:
            known = next((one for one in left if one.key == endpoint.key), None)
            if known is not None:
                left.remove(known)
                known.serves = endpoint.serves
            found.append(known or endpoint)
        self.endpoints, self._prompts = tuple(found), dict(prompts)
        for endpoint in left:
            endpoint.circuit.trip()  # and nobody is left to close it
            if watcher := self._watchers.pop(endpoint, None):
                watcher.cancel()
        if self._session is not None:
            self._watch_all()
        self._wake_all()

    async def answer(self, request: Request) -> Answer:
        if request.url == EMBEDDINGS:
            try:
                request = embed_forward.for_server(request, self._prompts.get(str(request.body.get("model"))))
            except Unacceptable as wrong:
                return wrong.answer
        answer = await self._ask(request, self._read)
        return replace(answer, body=wire.with_refusal(answer.body)) if request.url == wire.CHAT else answer

    async def stream(self, request: Request, emit: Emit) -> Answer:
        """Server-sent events, until `[DONE]`."""
        usage = wire.wants_usage(request.body)

        async def read(response: aiohttp.ClientResponse) -> bytes:
            if response.status != 200 or response.content_type != wire.EVENT_STREAM:
                return await self._read(response)
            async for event in wire.events(wire.lines(response.content.iter_any(), self._max_bytes)):
                await emit(wire.with_usage(event) if usage else event)
            return wire.STREAMED

        return await self._ask(replace(request, body={**request.body, "stream": True}), read)

    async def _ask(self, request: Request, read: Read) -> Answer:
        model = str(request.body.get("model"))
        having = self._having(model)
        if not having:
            return self._unserved(model)
        outside = not any(endpoint.external for endpoint in having) or await self._allows_external(request.tenant)
        able = [endpoint for endpoint in having if outside or not endpoint.external]
        if not able:
            return self._forbidden(model)
        if self._refuses_text_images and (refused := media.in_text(request.body)):
            return refused
        able = self._unrefused(model, able)
        limited = 0
        while True:
            endpoint = await self._admit(request.priority, able)
            try:
                return await self._send(endpoint, request, model, read)
            except Refused as refused:
                able.remove(endpoint)
                if not able:
                    raise EngineBusy(str(refused), refused.retry_after) from refused
            except Limited as error:
                limited += 1
                await self._back_off(error, limited)

    def _having(self, model: str) -> list[Endpoint]:
        """The servers that have the model by name, else those that take any name."""
        named = [endpoint for endpoint in self.endpoints if endpoint.upstream(model)]
        return named or [endpoint for endpoint in self.endpoints if endpoint.takes_any]

    def _unrefused(self, model: str, able: list[Endpoint]) -> list[Endpoint]:
        """Leave out the servers that refuse the key. Raises EngineBusy when none is left."""
        left = [endpoint for endpoint in able if not endpoint.refuses(model)]
        if not left:
            wait = min(endpoint.refuses(model) for endpoint in able)
            raise EngineBusy("No endpoint of this model takes our key.", retry_after=wait)
        return left

    def _forbidden(self, model: str) -> Answer:
        """Refuse a model that only external servers have, unless an internal one may still turn out to have it."""
        if not all(endpoint.known or endpoint.external for endpoint in self.endpoints):
            raise Unserved(f"No reachable internal endpoint serves the model `{model}`.", retry_after=1.0)
        message = f"The model `{model}` runs outside this deployment, which the project does not allow."
        return refusal(403, message, code="external_model_not_allowed", param="model")

    def _unserved(self, model: str) -> Answer:
        if self.settled:
            return unknown_model(model)
        raise Unserved(f"No reachable endpoint serves the model `{model}`.", retry_after=1.0)

    async def _back_off(self, limited: Limited, times: int) -> None:
        """The pause itself is served in the line, where a second server may end it."""
        if times >= TRIES_WHEN_LIMITED or (limited.retry_after or 0) > LONGEST_PAUSE_SECONDS:
            raise EngineBusy(str(limited), limited.retry_after) from limited
        if limited.retry_after is None:
            await asyncio.sleep(FIRST_BACKOFF_SECONDS * 2**times)

    async def _admit(self, priority: int, able: list[Endpoint]) -> Endpoint:
        """A server with a free slot, which is taken; waits for one."""
        order = next(self._order)
        while True:
            ready = [endpoint for endpoint in able if endpoint.ready()]
            if ready:
                chosen = min(ready, key=lambda endpoint: endpoint.window.in_flight)
                chosen.window.in_flight += 1
                return chosen
            self._expect(able)
            await self._line_up(frozenset(able), priority, order)

    def _expect(self, able: list[Endpoint]) -> None:
        """Waiting makes sense if a server is merely full, or pauses for a moment."""
        if not any(e.circuit.closed and e.pause <= LONGEST_PAUSE_SECONDS for e in able):
            wait = min(endpoint.wait() for endpoint in able)
            raise EngineBusy("No endpoint of this model takes requests now.", retry_after=max(wait, WATCH_SECONDS))

    async def _line_up(self, line: Line, priority: int, order: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting.setdefault(line, []), (priority, order, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # our turn had come: pass it on
                for endpoint in self.endpoints:
                    self._wake(endpoint)
            raise

    def _wake(self, endpoint: Endpoint) -> None:
        """Give the free slots of an endpoint to the requests that wait for it."""
        if not self._waiting or not endpoint.ready():
            return
        room = endpoint.window.room
        for line in [line for line in self._waiting if endpoint in line]:
            room -= self._call_up(line, room)

    def _wake_all(self) -> None:
        """A circuit changed: everyone looks again."""
        for line in list(self._waiting):
            self._call_up(line, len(self._waiting[line]))

    def _call_up(self, line: Line, most: int) -> int:
        tickets, called = self._waiting[line], 0
        while tickets and called < most:
            turn = heapq.heappop(tickets)[2]
            if not turn.done():
                turn.set_result(None)
                called += 1
        if not tickets:
            del self._waiting[line]
        return called

    async def _send(self, endpoint: Endpoint, request: Request, model: str, read: Read) -> Answer:
        """Use the slot that was taken, and free it."""
        upstream = endpoint.upstream(model) or model
        body = forwarded(request.body, upstream, request.tenant if endpoint.of_vllm else "")
        headers = {"X-Request-Id": request.request_id}
        if endpoint.api_key:
            headers["Authorization"] = f"Bearer {endpoint.api_key}"
        cuts = endpoint.window.cuts
        try:
            if endpoint.external and not await self._allows_external(request.tenant):  # it may have waited for long
                raise Refused("The project does not allow external endpoints any more.")
            if endpoint.doubtful:
                await self._prove(endpoint)

            async def post(path: str, data: bytes) -> Said:
                return await self._post(endpoint, path, data, headers, read)

            if request.url == RERANK:
                said = await rerank_tei.ask(endpoint, body, post)
            else:
                said = await post(request.url, msgspec.json.encode(body))
            return self._judge(endpoint, model, cuts, *said)
        finally:
            endpoint.window.in_flight -= 1
            self._wake(endpoint)

    async def _post(self, endpoint: Endpoint, path: str, body: bytes, headers: dict[str, str], read: Read) -> Said:
        assert self._session, "start() comes first"
        url = endpoint.url + path
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                raw = await read(response)
                return response.status, response.headers.get("Retry-After"), raw
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._failed(endpoint, error, endpoint.circuit.trip)
            raise Refused(f"The endpoint is not reachable: {error}") from error
        except wire.BrokenStream as error:
            self._failed(endpoint, error, endpoint.circuit.fault)
            raise EngineFault(f"The endpoint's stream broke: {error}.") from error
        except TimeoutError as error:
            self._failed(endpoint, error, endpoint.circuit.fault)
            raise EngineFault(f"The endpoint gave no answer within {self._timeout:g} s.") from error
        except aiohttp.ClientError as error:
            endpoint.doubtful = True
            self._failed(endpoint, error, endpoint.circuit.fault)
            message = f"The connection broke: {type(error).__name__} {error}".rstrip()
            raise EngineFault(message, gone=await self._is_gone(endpoint)) from error

    async def _prove(self, endpoint: Endpoint) -> None:
        """A connection broke. Is the server still there? One that is dying takes requests and breaks them all.

        They would count as tries of requests that it never saw. Raises Refused; one asks, the others wait for it.
        """
        assert self._session, "start() comes first"
        async with endpoint.proving:
            if endpoint.doubtful and endpoint.circuit.closed:
                if not await listing.is_there(self._session, endpoint):
                    self._failed(endpoint, "gone after a broken connection", endpoint.circuit.trip)
                endpoint.doubtful = False
            if not endpoint.circuit.closed:
                raise Refused("The endpoint is gone.")

    async def _is_gone(self, endpoint: Endpoint) -> bool:
        try:
            await self._prove(endpoint)
        except Refused:
            return True
        return False

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        length = response.content_length
        if length is not None and length <= self._max_bytes and "Content-Encoding" not in response.headers:
            return await response.read()
        body = bytearray()
        if (length or 0) <= self._max_bytes:
            async for part in response.content.iter_any():
                body += part
                if len(body) > self._max_bytes:
                    break
            else:
                return bytes(body)
        response.close()
        raise EngineFault(f"The endpoint's answer is larger than {self._max_bytes} bytes.")

    def _judge(
        self, endpoint: Endpoint, model: str, cuts: int, status: int, retry_after: str | None, raw: bytes
    ) -> Answer:
        if status in {429, 503}:
            raise self._slow_down(endpoint, cuts, status, wire.retry_after(retry_after))
        if status in _CLOSED:  # its words stay here: they may hold a part of the key
            if not endpoint.refuses(model):
                log.error("engine.refuses_our_key", extra={"endpoint": endpoint.url, "model": model, "status": status})
            pause = endpoint.refused(model, wire.retry_after(retry_after) or CLOSED_SECONDS)
            raise Refused(f"The endpoint refuses our key ({status}).", pause)
        if status in {502, 504}:  # a proxy that lost its server
            self._failed(endpoint, f"status {status}", endpoint.circuit.fault)
        else:
            endpoint.circuit.succeed()
        if status >= 500 or status in _PASSING:
            raise EngineFault(f"The endpoint answered {status}.", Answer(status, wire.error_body(status, raw)))
        endpoint.window.grow()
        return wire.answer_of(status, raw)

    def _slow_down(self, endpoint: Endpoint, cuts: int, status: int, retry_after: float | None) -> EngineBusy:
        endpoint.window.cut(cuts)
        if retry_after:
            until = endpoint.clock() + retry_after
            endpoint.paused_until = max(endpoint.paused_until, until)
            # A little later than the pause: a timer may fire a clock tick early.
            asyncio.get_running_loop().call_later(retry_after + 0.01, self._wake, endpoint)
            if retry_after > LONGEST_PAUSE_SECONDS:
                self._wake_all()
        kind = Limited if status == 429 else Refused
        return kind(f"The endpoint answered {status}.", retry_after)

    def _failed(self, endpoint: Endpoint, reason: object, count: Callable[[], None]) -> None:
        """Count a failure of the server; those who wait look again if that opened its circuit."""
        closed = endpoint.circuit.closed
        count()
        if closed and not endpoint.circuit.closed:
            log.warning("engine.circuit_opened", extra={"endpoint": endpoint.url, "reason": str(reason)})
            self._wake_all()

    async def discover(self) -> None:
        """List the models of every server whose listing is due."""
        await asyncio.gather(*(self._list(endpoint) for endpoint in self.endpoints if endpoint.listing_due()))

    def _watch_all(self) -> None:
        for endpoint in self.endpoints:
            if endpoint not in self._watchers:
                self._watchers[endpoint] = asyncio.create_task(self._watch(endpoint))

    async def _watch(self, endpoint: Endpoint) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if endpoint.listing_due():
                await self._list(endpoint)

    async def _list(self, endpoint: Endpoint) -> None:
        assert self._session, "start() comes first"
        endpoint.listing()
        was_closed = endpoint.circuit.closed
        try:
            names = await listing.names_of(self._session, endpoint, self._read)
        except listing.Away:
            endpoint.unlisted()
            return
        endpoint.listed(names)
        if not was_closed:
            log.info("engine.circuit_closed", extra={"endpoint": endpoint.url})
        self._wake(endpoint)
