"""Who calls: `Authorization: Bearer <key>`, checked before anything else of the request is looked at.

A key that was good is trusted for two seconds (see `api.trusted`). Wrong keys are counted by address: past the limit
they are refused without asking the database unless their checksum holds, so that nobody can lock out the right keys of
their own address.
"""

import hashlib
import hmac
import time
from collections import OrderedDict
from contextlib import suppress
from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from api.deps import Caller, Services
from api.errors import respond
from api.trusted import Trusted
from jobs.errors import NightmillError, TooManyRequests, Unauthenticated
from jobs.security.keys import check_key, well_formed

_METRICS = "/metrics"
#: Served to anyone: they tell nothing about a project. The metrics may have a key of their own.
OPEN = frozenset({"/livez", "/readyz", _METRICS, "/openapi.json", "/chat", "/chat/chat.css", "/chat/chat.js"})
_ADDRESSES = 10_000
_MINUTE = 60.0


class Authenticate:
    """Puts a `Caller` into the request's state, or answers 401 or 429."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self.app = app
        self.services = services
        self._trusted = Trusted[Caller]()
        self._wrong = _Counter(services.config.wrong_keys_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                if scope["path"] not in OPEN:
                    scope["state"]["caller"] = await self._caller(scope)
                elif scope["path"] == _METRICS:
                    self._check_metrics_key(scope)
            except NightmillError as error:
                await respond(error, _challenge(error))(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Caller:
        key = _bearer(scope)
        if well_formed(key):
            with suppress(Unauthenticated):
                return await self._trusted.get(hashlib.sha256(key.encode()).digest(), partial(self._look_up, key))
        raise self._refusal(scope)

    def _check_metrics_key(self, scope: Scope) -> None:
        """Refuse a request without the key of NIGHTMILL_METRICS_KEY, where that is set.

        Raises: Unauthenticated, TooManyRequests.
        """
        wanted = self.services.config.metrics_key
        if wanted and not hmac.compare_digest(_bearer(scope).encode("latin-1"), wanted.encode()):
            raise self._refusal(scope)

    def _look_up(self, key: str) -> Caller:
        with self.services.db.read() as session:
            row = check_key(session, key)
            if row is None:
                raise Unauthenticated
            return Caller(row.id, row.project_id)

    def _refusal(self, scope: Scope) -> NightmillError:
        address = (scope.get("client") or ("unknown", 0))[0]
        if self._wrong.over(address, time.monotonic()):
            return TooManyRequests("Too many requests with a wrong API key. Wait a minute.")
        return Unauthenticated()


class _Counter:
    """How often an address came with a wrong key in this minute."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def over(self, address: str, at: float) -> bool:
        since, count = self._counts.get(address, (at, 0))
        if at - since > _MINUTE:
            since, count = at, 0
        self._counts[address] = (since, count + 1)
        self._counts.move_to_end(address)
        if len(self._counts) > _ADDRESSES:
            self._counts.popitem(last=False)
        return count + 1 > self._limit


def _bearer(scope: Scope) -> str:
    """The one bearer token. Raises Unauthenticated; two headers are one too many."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if not values:
        raise Unauthenticated(
            "You didn't provide an API key. Send it in an Authorization header: 'Authorization: Bearer YOUR_KEY'.",
            code="missing_api_key",
        )
    text: str = values[0].decode("latin-1").strip()
    scheme, _, key = text.partition(" ")
    if len(values) != 1 or scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("The Authorization header must be 'Bearer YOUR_KEY'.")
    return key.strip()


def _challenge(error: NightmillError) -> dict[str, str]:
    return {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthenticated) else {}
