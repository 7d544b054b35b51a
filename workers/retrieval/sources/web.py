"""A source of URLs. The SSRF guard checks each address before a connection, and each redirect.

conditional GET ──▶ 200: the bytes      304: unchanged      404, 410: deleted      anything else: failed
"""

import asyncio
import mimetypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import aiohttp

from jobs.errors import InvalidRequest
from jobs.platform.url_guard import Resolve
from jobs.webhooks.sending import reason
from workers.retrieval.sources.base import (
    CHUNK,
    Fetched,
    ItemDeleted,
    ItemFailed,
    SourceEntry,
    Take,
    display_name,
    too_many,
)
from workers.runtime.guarded_client import REDIRECTS, GuardedClient, TooManyRedirects, is_compressed

_GONE: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
#: Request headers that make a request conditional, by the header of the last answer.
_CONDITIONS: Final = {"etag": "If-None-Match", "last-modified": "If-Modified-Since"}


@dataclass(frozen=True, slots=True)
class PageReader:
    """Documents behind URLs, one each. `seconds` is the limit for one of them with all its redirects."""

    urls: Sequence[str]
    seconds: float
    allow_private: bool = False
    resolve: Resolve | None = None

    def entries(self, limit: int, look: Callable[[], None]) -> list[SourceEntry]:
        look()
        if len(self.urls) > limit:
            raise too_many(limit)
        return [SourceEntry(url, display_name(unquote(urlsplit(url).path))) for url in self.urls]

    def fetch(self, entry: SourceEntry, known: dict[str, Any] | None, take: Take) -> Fetched | None:
        return asyncio.run(self._fetch(entry, known, take))

    async def _fetch(self, entry: SourceEntry, known: dict[str, Any] | None, take: Take) -> Fetched | None:
        conditions = {_CONDITIONS[name]: value for name, value in (known or {}).items()}
        try:
            async with GuardedClient(self.seconds, self.allow_private, self.resolve).get(
                entry.key, conditions
            ) as answer:
                if answer.status == HTTPStatus.NOT_MODIFIED and conditions:
                    return None
                _judge(answer)
                async for chunk in answer.content.iter_chunked(CHUNK):
                    take(chunk)
                return _describe(answer, entry)
        except InvalidRequest as error:
            raise ItemFailed("url_refused", error.message) from error
        except TooManyRedirects as error:
            raise ItemFailed("too_many_redirects", f"The URL leads on more than {REDIRECTS} times.") from error
        except (aiohttp.ClientError, OSError, UnicodeError) as error:  # a TimeoutError is an OSError
            raise ItemFailed("url_unreachable", f"The URL cannot be fetched: {reason(error)}.") from error


def _judge(answer: aiohttp.ClientResponse) -> None:
    if answer.status in _GONE:
        raise ItemDeleted(f"The server answered {answer.status}.")
    if answer.status != HTTPStatus.OK:
        raise ItemFailed("http_status", f"The server answered {answer.status}.")
    if is_compressed(answer):
        raise ItemFailed("content_encoding", "The server compresses its answer, although it was asked not to.")


def _describe(answer: aiohttp.ClientResponse, entry: SourceEntry) -> Fetched:
    """Return what the answer says; a name without an extension gets that of the content's type."""
    conditions = {name: value for name in _CONDITIONS if (value := answer.headers.get(name, "")) and value.isascii()}
    name = entry.filename
    if "." not in name:
        name += mimetypes.guess_extension(answer.content_type) or ""
    return Fetched(conditions or None, name)
