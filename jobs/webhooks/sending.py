"""A webhook: its body, its signature (Standard Webhooks), and one attempt to post it.

    async with open_client(config) as client:
        outcome = await post_signed(client, url, secrets, delivery_id, body)

An attempt never raises: its result is an `AttemptOutcome`. 2xx is success, everything else a failure. Redirects are not
followed; at most 16 KB of a response are read, and discarded.
"""

import asyncio
import base64
import binascii
import json
import secrets as random
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import aiohttp
from standardwebhooks import Webhook
from yarl import URL

from jobs.clock import now
from jobs.errors import InvalidRequest
from jobs.platform.url_guard import AddressRefused, GuardedResolver, Resolve, parse
from jobs.settings import Settings
from jobs.webhooks.tables import Event, WebhookEndpoint

USER_AGENT = f"Nightmill/{version('nightmill')}"
_SECRET_PREFIX = "whsec_"  # noqa: S105
_SECRET_BYTES = 32
_ANSWER_BYTES = 16_384
_ANSWER_SECONDS = 0.5  # the status decides; the body is read only so that the connection can be reused
_KEEP_SECONDS = 4.0  # shorter than the five seconds after which many servers close a connection
_CONNECT_SECONDS = 5.0  # within the attempt


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """The result of one attempt, begun at `at`. `error` is a short constant, never text of the receiver."""

    status_code: int | None
    error: str | None
    retry_after: float | None
    seconds: float
    at: float = field(default_factory=now)

    @property
    def delivered(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True)
class WebhookClient:
    """Connections to receivers, behind the SSRF guard."""

    session: aiohttp.ClientSession
    allow_private: bool
    seconds: float


def new_secret() -> str:
    """Return a new signing secret. It is shown once, and stored readable, because signing needs it."""
    return _SECRET_PREFIX + base64.b64encode(random.token_bytes(_SECRET_BYTES)).decode()


def check_secret(secret: str, *, param: str = "secret") -> str:
    """Return a user's secret if it is `whsec_` and the base64 of 24 to 64 bytes.

    Raises: InvalidRequest.
    """
    try:
        size = len(base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if not secret.startswith(_SECRET_PREFIX) or not 24 <= size <= 64:
        message = "The secret must be 'whsec_' and the base64 of 24 to 64 bytes."
        raise InvalidRequest(message, param=param, code="invalid_value")
    return secret


def signing_secrets(endpoint: WebhookEndpoint, at: float) -> tuple[str, ...]:
    """Return the secrets that sign for an endpoint: the current one, and each old one until it expires."""
    return (endpoint.secret, *(secret for secret, _ in old_secrets(endpoint, at)))


def old_secrets(endpoint: WebhookEndpoint, at: float) -> list[tuple[str, float]]:
    """Return the old secrets that still sign, newest first, with their expiry."""
    last = (endpoint.old_secret, endpoint.old_secret_until)
    return [
        (secret, until) for secret, until in (last, *(endpoint.older_secrets or ())) if secret and (until or 0) > at
    ]


def envelope(event: Event) -> dict[str, Any]:
    """Return OpenAI's thin envelope of an event."""
    return {
        "id": event.id,
        "object": "event",
        "created_at": int(event.created_at),
        "type": event.type,
        "data": event.data,
    }


def body(event: Event) -> bytes:
    """Return the envelope's bytes, which are the same at every attempt."""
    return json.dumps(envelope(event), separators=(",", ":")).encode()


def sign(secrets: Sequence[str], webhook_id: str, at: float, content: bytes) -> str:
    """Return the `webhook-signature` header: one signature for each secret, any of which may match."""
    stamp, text = datetime.fromtimestamp(int(at), UTC), content.decode()
    return " ".join(Webhook(secret).sign(webhook_id, stamp, text) for secret in secrets)


def headers(
    secrets: Sequence[str],
    webhook_id: str,
    content: bytes,
    at: float,
    *,
    sequence: int | None = None,
    request_id: str | None = None,
) -> dict[str, str]:
    """Return the headers of one attempt. `sequence` orders the events of one job, which `request_id` created."""
    given = {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(at)),
        "webhook-signature": sign(secrets, webhook_id, at, content),
    }
    if sequence is not None:
        given["nightmill-sequence"] = str(sequence)
    if request_id is not None:
        given["x-request-id"] = request_id
    return given


@asynccontextmanager
async def open_client(
    config: Settings, *, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[WebhookClient]:
    """Open a client for many attempts. `resolve` and `tls` replace the system's."""
    private = config.webhook_allow_private
    connector = aiohttp.TCPConnector(
        resolver=GuardedResolver(allow_private=private, resolve=resolve),
        use_dns_cache=False,
        ssl=tls or True,
        limit=0,
        keepalive_timeout=_KEEP_SECONDS,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=config.webhook_timeout_seconds, connect=_CONNECT_SECONDS),
        auto_decompress=False,
        trust_env=False,
        trace_configs=[_trace_reuse()],
    ) as session:
        yield WebhookClient(session, private, config.webhook_timeout_seconds)


async def post_once(
    config: Settings, url: str, secrets: Sequence[str], webhook_id: str, content: bytes
) -> AttemptOutcome:
    """Make one attempt with a client of its own."""
    async with open_client(config) as client:
        return await post_signed(client, url, secrets, webhook_id, content)


async def post_signed(
    client: WebhookClient,
    url: str,
    secrets: Sequence[str],
    webhook_id: str,
    content: bytes,
    *,
    sequence: int | None = None,
    request_id: str | None = None,
) -> AttemptOutcome:
    """Make one attempt, signed now."""
    began, at = time.monotonic(), now()
    given = headers(secrets, webhook_id, content, at, sequence=sequence, request_id=request_id)
    status, error, retry_after = await _attempt(client, url, given, content)
    return AttemptOutcome(status, error, retry_after, time.monotonic() - began, at)


async def _attempt(
    client: WebhookClient, url: str, given: dict[str, str], content: bytes
) -> tuple[int | None, str | None, float | None]:
    try:
        target = parse(url, allow_private=client.allow_private)
        async with asyncio.timeout(client.seconds):
            response = await _post(client.session, target.url(), given, content)
    except (InvalidRequest, aiohttp.ClientError, OSError, UnicodeError) as error:  # a TimeoutError is an OSError
        return None, reason(error), None
    if response.ok and response.status < 300:
        return response.status, None, None
    return response.status, f"status {response.status}", _retry_after(response.headers.get("retry-after"))


async def _post(
    session: aiohttp.ClientSession, url: URL, given: dict[str, str], content: bytes
) -> aiohttp.ClientResponse:
    """Post once. If a reused connection turns out to be closed, post again on the next one."""
    while True:
        trace = SimpleNamespace(reused=False)
        sending = session.post(url, data=content, headers=given, allow_redirects=False, trace_request_ctx=trace)
        try:
            async with sending as response:
                await _drop(response.content)
                return response
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not trace.reused:
                raise


async def _drop(content: aiohttp.StreamReader) -> None:
    left = _ANSWER_BYTES
    with suppress(TimeoutError, aiohttp.ClientError):  # the status is known already
        async with asyncio.timeout(_ANSWER_SECONDS):
            while left > 0 and (chunk := await content.read(left)):
                left -= len(chunk)


def _trace_reuse() -> aiohttp.TraceConfig:
    async def reused(_session: object, context: SimpleNamespace, _params: object) -> None:
        context.trace_request_ctx.reused = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(reused)
    return trace


#: The first matching type names the failure.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (InvalidRequest, "url refused"),
    (TimeoutError, "timeout"),
    (AddressRefused, "address not public"),
    (aiohttp.ClientConnectorDNSError, "name not resolved"),
    (aiohttp.ClientSSLError, "tls failed"),
    (aiohttp.ClientConnectorError, "connection refused"),
    (aiohttp.ServerDisconnectedError, "connection closed"),
    (aiohttp.ClientOSError, "connection reset"),
    (aiohttp.ClientPayloadError, "answer broken"),
    (aiohttp.ClientResponseError, "answer not http"),
)


def reason(error: Exception) -> str:
    """Return why a request got no response, in two or three constant words."""
    cause = getattr(error, "os_error", None) if isinstance(error, aiohttp.ClientConnectorDNSError) else None
    failure = cause if isinstance(cause, AddressRefused) else error
    return next((reason for kind, reason in _REASONS if isinstance(failure, kind)), "connection failed")


def _retry_after(value: str | None) -> float | None:
    """Return seconds from either form of the header; None if it is malformed."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now())
    except (ValueError, TypeError, OverflowError):
        return None
