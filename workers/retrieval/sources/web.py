"""A source of URLs. The SSRF guard checks each address before a connection, and each redirect.

conditional GET ──▶ 200: the bytes      304: unchanged      404, 410: deleted      anything else: failed
"""

import asyncio
import mimetypes
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import aiohttp

from jobs.errors import InvalidRequest
from jobs.platform.url_guard import GuardedResolver, Resolve, parse
from jobs.webhooks.sending import reason
from workers.retrieval.sources.base import CHUNK, Entry, Fetched, ItemDeleted, ItemFailed, Take, named, too_many

_REDIRECTS: Final = 5
_CONNECT_SECONDS: Final = 10.0
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_GONE: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
#: Request headers that make a request conditional, by the header of the last answer.
_CONDITIONS: Final = {"etag": "If-None-Match", "last-modified": "If-Modified-Since"}
_HEADERS: Final = {"User-Agent": "nightmill", "Accept": "*/*", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Pages:
    """Documents behind URLs, one each. `seconds` is the limit for one of them with all its redirects."""

    urls: Sequence[str]
    seconds: float
    allow_private: bool = False
    resolve: Resolve | None = None

    def entries(self, limit: int, look: Callable[[], None]) -> list[Entry]:
        look()
        if len(self.urls) > limit:
            raise too_many(limit)
        return [Entry(url, named(unquote(urlsplit(url).path))) for url in self.urls]

    def fetch(self, entry: Entry, known: dict[str, Any] | None, take: Take) -> Fetched | None:
        return asyncio.run(self._fetch(entry, known, take))

    async def _fetch(self, entry: Entry, known: dict[str, Any] | None, take: Take) -> Fetched | None:
        conditions = {_CONDITIONS[name]: value for name, value in (known or {}).items()}
        try:
            async with (
                asyncio.timeout(self.seconds),
                self._client() as session,
                self._answer(session, entry.key, {**_HEADERS, **conditions}) as answer,
            ):
                if answer.status == HTTPStatus.NOT_MODIFIED and conditions:
                    return None
                _judge(answer)
                async for chunk in answer.content.iter_chunked(CHUNK):
                    take(chunk)
                return _told(answer, entry)
        except InvalidRequest as error:
            raise ItemFailed("url_refused", error.message) from error
        except (aiohttp.ClientError, OSError, UnicodeError) as error:  # a TimeoutError is an OSError
            raise ItemFailed("url_unreachable", f"The URL cannot be fetched: {reason(error)}.") from error

    def _client(self) -> aiohttp.ClientSession:
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
        """Yield the answer behind all redirects. Raises InvalidRequest if one leads to a forbidden address."""
        for _ in range(_REDIRECTS + 1):
            target = parse(url, allow_private=self.allow_private)
            async with session.get(target.url(), headers=headers, allow_redirects=False) as answer:
                location = answer.headers.get("Location")
                if answer.status not in _MOVED or location is None:
                    yield answer
                    return
            url = _joined(url, location)
        raise ItemFailed("too_many_redirects", f"The URL leads on more than {_REDIRECTS} times.")


def _joined(url: str, location: str) -> str:
    """Return the URL of a redirect; the guard checks it later."""
    try:
        return urldefrag(urljoin(url, location)).url
    except ValueError as error:
        raise InvalidRequest("A redirect leads to what is no URL.") from error


def _judge(answer: aiohttp.ClientResponse) -> None:
    if answer.status in _GONE:
        raise ItemDeleted(f"The server answered {answer.status}.")
    if answer.status != HTTPStatus.OK:
        raise ItemFailed("http_status", f"The server answered {answer.status}.")
    if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise ItemFailed("content_encoding", "The server compresses its answer, although it was asked not to.")


def _told(answer: aiohttp.ClientResponse, entry: Entry) -> Fetched:
    """Return what the answer says; a name without an extension gets that of the content's type."""
    conditions = {name: value for name in _CONDITIONS if (value := answer.headers.get(name, "")) and value.isascii()}
    name = entry.filename
    if "." not in name:
        name += mimetypes.guess_extension(answer.content_type) or ""
    return Fetched(conditions or None, name)
