"""GET what a user's URL names. The SSRF guard checks each address before a connection, and each redirect."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urldefrag, urljoin

import aiohttp

from jobs.errors import InvalidRequest
from jobs.platform.url_guard import GuardedResolver, Resolve, parse

REDIRECTS: Final = 5
_CONNECT_SECONDS: Final = 10.0
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_HEADERS: Final = {"User-Agent": "nightmill", "Accept": "*/*", "Accept-Encoding": "identity"}


class TooManyRedirects(Exception):
    """The URL leads on more than `REDIRECTS` times."""


@dataclass(frozen=True, slots=True)
class GuardedClient:
    """A client of users' URLs. `seconds` is the limit for one of them with all its redirects."""

    seconds: float
    allow_private: bool = False
    resolve: Resolve | None = None

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the answer behind all redirects.

        Raises:
            InvalidRequest: The URL, or one that it leads to, is not allowed.
            TooManyRedirects: The URL leads on too often.
            aiohttp.ClientError, OSError, UnicodeError: No answer came.
        """
        async with (
            asyncio.timeout(self.seconds),
            self._session() as session,
            self._answer(session, url, {**_HEADERS, **(headers or {})}) as answer,
        ):
            yield answer

    def _session(self) -> aiohttp.ClientSession:
        resolver = GuardedResolver(allow_private=self.allow_private, resolve=self.resolve)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=min(_CONNECT_SECONDS, self.seconds)),
            auto_decompress=False,  # a compressed body could expand without limit
            trust_env=False,  # a proxy would connect without the guard
        )

    @asynccontextmanager
    async def _answer(
        self, session: aiohttp.ClientSession, url: str, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        for _ in range(REDIRECTS + 1):
            target = parse(url, allow_private=self.allow_private)
            async with session.get(target.url(), headers=headers, allow_redirects=False) as answer:
                location = answer.headers.get("Location")
                if answer.status not in _MOVED or location is None:
                    yield answer
                    return
            url = _join_url(url, location)
        raise TooManyRedirects


def is_compressed(answer: aiohttp.ClientResponse) -> bool:
    """Return whether the server compresses its answer, although it was asked not to."""
    return answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")


def _join_url(url: str, location: str) -> str:
    """Return the URL of a redirect; the guard checks it later."""
    try:
        return urldefrag(urljoin(url, location)).url
    except ValueError as error:
        raise InvalidRequest("A redirect leads to what is no URL.") from error
