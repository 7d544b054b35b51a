"""Connect to OpenAI-compatible servers: POST requests, tell their faults apart, and list a server's models.

refused, no route      the circuit opens; Refused: another server may take the request
reset, timeout         a fault of the server; EngineFault: the request was sent, and broke

GET /v1/models
refused, no route      the circuit opens
200 with a list        its models
404, 405, 501          the server has no list: it takes any name
other 5xx, silence     the server is unreachable
any other answer       no list yet: the key is refused, a rate limit, a proxy's page
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp

from jobs import logs
from jobs.fleet.models_file import ANY_MODEL
from workers.engines import wire
from workers.engines.http.deadlines import Deadlines
from workers.engines.http.endpoints import Endpoint
from workers.engines.port import EngineBusy, EngineFault

CONNECT_SECONDS: Final = 5.0
KEEPALIVE_SECONDS: Final = 4.0  # below the 5 s after which uvicorn closes: a request never meets a dying connection
_LISTING: Final = aiohttp.ClientTimeout(total=5.0, sock_connect=3.0)
_NO_LIST: Final = frozenset({404, 405, 501})
_HEADERS: Final = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "nightmill"}

Reply = tuple[int, str | None, bytes]  # status, Retry-After, body
#: Reads an answer; the function that it gets begins the time of the request again, and is called with each progress.
Read = Callable[[aiohttp.ClientResponse, Callable[[], None]], Awaitable[bytes]]

log = logging.getLogger(__name__)


class ServerBusy(EngineBusy):
    """The server didn't take the request; another server may."""


class EndpointUnavailable(Exception):
    """The server is unreachable."""


class HttpClient:
    """A pool of connections. An answer has at most `max_bytes` and ends within `timeout` seconds.

    A stream has as long until each of its events, see `deadlines`.
    """

    def __init__(self, timeout: float, max_bytes: int) -> None:
        self._deadlines, self.max_bytes = Deadlines(timeout), max_bytes
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(CONNECT_SECONDS, timeout / 2)),
            trust_env=False,
        )

    async def close(self) -> None:
        self._deadlines.close()
        await self._session.close()

    async def post(self, endpoint: Endpoint, path: str, body: bytes, request_id: str, read: Read | None) -> Reply:
        """Send `body` and `read` the answer, whatever its status; whole, if no `read` is given.

        Raises:
            Refused: The server is unreachable; the request was not sent.
            EngineFault: The request was sent and broke, or its answer is too large.
        """
        if endpoint.doubtful:
            await self._prove(endpoint)
        headers = {"X-Request-Id": _trace_id(request_id), **_authorization(endpoint)}
        url = endpoint.url + path
        try:
            with self._deadlines.limit() as deadline:
                async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                    raw = await (read(response, deadline.renew) if read else self.read(response))
                    return response.status, response.headers.get("Retry-After"), raw
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            endpoint.fail(error, unreachable=True)
            raise ServerBusy(f"The endpoint is not reachable: {error}") from error
        except wire.BrokenStream as error:
            endpoint.fail(error)
            raise EngineFault(f"The endpoint's stream broke: {error}.") from error
        except TimeoutError as error:
            endpoint.fail(error)
            raise EngineFault(f"The endpoint gave no answer within {self._deadlines.seconds:g} s.") from error
        except aiohttp.ClientError as error:
            endpoint.doubtful = True
            endpoint.fail(error)
            message = f"The connection broke: {type(error).__name__} {error}".rstrip()
            raise EngineFault(message, unreachable=await self._is_unreachable(endpoint)) from error

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """Read a whole answer. Raises EngineFault if it is too large."""
        length = response.content_length
        if length is not None and length <= self.max_bytes and "Content-Encoding" not in response.headers:
            return await response.read()
        body = bytearray()
        if (length or 0) <= self.max_bytes:
            async for part in response.content.iter_any():
                body += part
                if len(body) > self.max_bytes:
                    break
            else:
                return bytes(body)
        response.close()
        raise EngineFault(f"The endpoint's answer is larger than {self.max_bytes} bytes.")

    async def list_models(self, endpoint: Endpoint) -> None:
        """List the models of a server, and so probe its circuit."""
        endpoint.begin_listing()
        try:
            names = await self._names_of(endpoint)
        except EndpointUnavailable as error:
            if isinstance(error.__cause__, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
                endpoint.fail(error.__cause__, unreachable=True)
            else:
                endpoint.fail_listing()
            return
        endpoint.finish_listing(names)

    async def _names_of(self, endpoint: Endpoint) -> frozenset[str] | None:
        """Return the names of the models; `*` if the server has no list, None if it refused.

        Note on the endpoint whether its server is vLLM.

        Raises:
            EndpointUnavailable: The server does not answer, or answers that it cannot.
        """
        headers, url = _authorization(endpoint), f"{endpoint.url}/v1/models"
        try:
            async with self._session.get(url, headers=headers, timeout=_LISTING, allow_redirects=False) as response:
                status = response.status
                if status >= 500 and status not in _NO_LIST:
                    raise EndpointUnavailable
                listing = wire.listing(await self.read(response)) if status == 200 else None
        except (aiohttp.ClientError, TimeoutError, EngineFault) as error:
            raise EndpointUnavailable from error
        if listing is None and status not in _NO_LIST:
            _note_missing_list(endpoint, status)
            return None
        endpoint.unlisted_status = 0
        endpoint.of_vllm = listing is not None and listing.of_vllm
        return frozenset({ANY_MODEL}) if listing is None else listing.names

    async def _prove(self, endpoint: Endpoint) -> None:
        """Check after a broken connection that the server can be reached. Raises Refused if it can not.

        A dying server accepts requests and breaks them all: they would count as tries of requests that it never
        executed. One request checks, the others wait for the result.
        """
        async with endpoint.proving:
            if endpoint.doubtful and endpoint.circuit.is_closed:
                if not await self._is_there(endpoint):
                    endpoint.fail("gone after a broken connection", unreachable=True)
                endpoint.doubtful = False
            if not endpoint.circuit.is_closed:
                raise ServerBusy("The endpoint is gone.")

    async def _is_unreachable(self, endpoint: Endpoint) -> bool:
        try:
            await self._prove(endpoint)
        except ServerBusy:
            return True
        return False

    async def _is_there(self, endpoint: Endpoint) -> bool:
        """Return whether the server answers at all, or accepts the connection."""
        url = f"{endpoint.url}/v1/models"
        try:
            async with self._session.get(url, timeout=_LISTING, allow_redirects=False):
                return True
        except TimeoutError:
            return True
        except aiohttp.ClientError:
            return False


def _trace_id(request_id: str) -> str:
    """Return the id of a request to an engine, behind that of the request to the API which it belongs to.

    The latter is not enough: all lines of a batch have the same one, and vLLM refuses an id that it has in progress.
    """
    return f"{origin}-{request_id}" if (origin := logs.request_id()) else request_id


def _authorization(endpoint: Endpoint) -> dict[str, str]:
    return {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}


def _note_missing_list(endpoint: Endpoint, status: int) -> None:
    """Log the first answer without a list. Where the models file names the server's models, no list is needed."""
    if endpoint.serves is None and endpoint.unlisted_status != status:
        log.error("engine.models_not_listed", extra={"endpoint": endpoint.url, "status": status})
    endpoint.unlisted_status = status
