"""Fetch the pictures and files that a request names by URL, for the projects that allow it.

    chat, response ── the project allows it ──▶ room in memory ──▶ URL guard ──▶ `data:` URLs ──▶ engine
          └────────── it does not ────────────▶ as it is: `workers.engines.media` refuses it

This stands before the cache, which so compares the bytes and not the URL. Nothing of what was fetched is kept.
"""

import asyncio
import base64
import mimetypes
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import aiohttp

from jobs.errors import InvalidRequest
from jobs.platform.limiters import Limit
from jobs.platform.url_guard import on_behalf_of
from jobs.requests.endpoints import CHAT, RESPONSES
from jobs.settings import Settings
from jobs.webhooks.sending import reason
from workers.engines.port import Answer, Emit, Engine, Request, refusal
from workers.middleware.base import Middleware
from workers.runtime.guarded_client import GuardedClient, TooManyRedirects, is_compressed

MAX_URLS: Final = 16  # of one request
FETCH_SECONDS: Final = 20.0  # for all that one request names
#: Bytes of media that this process holds, and that it holds for one project. A request reserves the most that it may
#: have, and returns what it did not need once all is fetched.
PROCESS_BYTES: Final = 256 << 20
PROJECT_BYTES: Final = 128 << 20
_CHUNK: Final = 1 << 16
_FILE: Final = "file_url"
#: The key with the URL, by type of a content part.
_KEYS: Final = {CHAT: {"image_url": "image_url"}, RESPONSES: {"input_image": "image_url", "input_file": _FILE}}
#: The field with messages or items, and the keys of these with content parts.
_LISTS: Final = {CHAT: ("messages", ("content",)), RESPONSES: ("input", ("content", "output"))}
_TYPE: Final = re.compile(r"[\w.+-]+/[\w.+-]+", re.ASCII)
_ANY_TYPE: Final = "application/octet-stream"

Permission = Callable[[str], Awaitable[bool]]  # says of a project's id whether its media may be fetched


class Medium(NamedTuple):
    """A content part that names its bytes by URL; `param` is the path of the URL in the request."""

    part: dict[str, Any]
    key: str
    url: str
    param: str


class NotFetched(Exception):
    """A picture or file cannot be had; `param` is the path of its URL in the request."""

    def __init__(self, message: str, param: str, code: str = "media_url_failed") -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class MediaUrlMiddleware(Middleware):
    """Put the bytes of pictures and files in the place of their URLs. On the engines' loop."""

    def __init__(self, engine: Engine, allows: Permission, config: Settings, seconds: float = FETCH_SECONDS) -> None:
        super().__init__(engine)
        self._allows = allows
        self._client = GuardedClient(seconds, config.media_allow_private)
        self._max_bytes = min(config.media_max_bytes, PROJECT_BYTES)
        self._process = Limit(PROCESS_BYTES)
        self._projects: dict[str, Limit] = {}

    def concerns(self, request: Request) -> bool:
        return next(media_of(request.url, request.body), None) is not None

    async def handle(self, request: Request) -> Answer:
        return await self._ask_with_bytes(request, self.engine.answer)

    async def handle_stream(self, request: Request, emit: Emit) -> Answer:
        return await self._ask_with_bytes(request, partial(self.engine.stream, emit=emit))

    async def _ask_with_bytes(self, request: Request, ask: Callable[[Request], Awaitable[Answer]]) -> Answer:
        if not await self._allows(request.tenant):
            return await ask(request)
        body = deepcopy(request.body)
        media = list(media_of(request.url, body))
        if len(media) > MAX_URLS:
            message = f"A request may name at most {MAX_URLS} pictures and files by URL; this one names {len(media)}."
            return refusal(400, message, param=_LISTS[request.url][0], code="too_many_media_urls")
        async with self._room(request) as keep:
            try:
                with on_behalf_of(request.tenant):
                    keep(await self._fetch(media))
            except NotFetched as error:
                return refusal(400, error.message, param=error.param, code=error.code)
            return await ask(replace(request, body=body))

    @asynccontextmanager
    async def _room(self, request: Request) -> AsyncIterator[Callable[[int], None]]:
        """Reserve the most bytes that a request may have; yield what gives back all but the bytes that it has."""
        project = self._projects.setdefault(request.tenant, Limit(PROJECT_BYTES))
        limits, held = (project, self._process), self._max_bytes

        def release(limit: Limit) -> None:
            limit.release(held)

        def keep(size: int) -> None:
            nonlocal held
            for limit in limits:
                limit.release(held - size)
            held = size

        try:
            async with AsyncExitStack() as stack:
                for limit in limits:
                    await limit.acquire(held, request.priority)
                    stack.callback(release, limit)
                yield keep
        finally:
            if not (project.used or project.waiting):
                self._projects.pop(request.tenant, None)

    async def _fetch(self, media: Sequence[Medium]) -> int:
        """Put the bytes of all media into their parts; return how many they are. Raises NotFetched."""
        left = self._max_bytes

        def take(chunk: bytes, medium: Medium) -> bytes:
            nonlocal left
            left -= len(chunk)
            if left < 0:
                message = f"The pictures and files of a request may have {self._max_bytes} bytes in all."
                raise NotFetched(message, medium.param, "media_too_large")
            return chunk

        tasks = [asyncio.create_task(self._get(medium, take)) for medium in media]
        try:
            for medium, data in zip(media, await asyncio.gather(*tasks), strict=True):
                _put(medium, data)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return self._max_bytes - left

    async def _get(self, medium: Medium, take: Callable[[bytes, Medium], bytes]) -> str:
        """Return what a URL names as a `data:` URL. Raises NotFetched."""
        try:
            async with self._client.get(medium.url) as answer:
                if answer.status != HTTPStatus.OK or is_compressed(answer):
                    raise NotFetched(_failure_text(medium, f"the server answered {answer.status}"), medium.param)
                kind = _type_of(medium, answer.content_type)
                chunks = [take(chunk, medium) async for chunk in answer.content.iter_chunked(_CHUNK)]
        except InvalidRequest as error:
            raise NotFetched(f"{medium.key}: {error.message}", medium.param, "invalid_url") from error
        except TooManyRedirects as error:
            raise NotFetched(_failure_text(medium, "it leads on too often"), medium.param) from error
        except (aiohttp.ClientError, OSError, UnicodeError) as error:  # a TimeoutError is an OSError
            raise NotFetched(_failure_text(medium, reason(error)), medium.param) from error
        return f"data:{kind};base64,{base64.b64encode(b''.join(chunks)).decode()}"


def media_of(url: str, body: Mapping[str, Any]) -> Iterator[Medium]:
    """Find the content parts of a request that name a picture or a file by an http or https URL."""
    field, lists = _LISTS.get(url, ("", ()))
    members = body.get(field)
    for n, member in enumerate(members if isinstance(members, list) else ()):
        for name in lists if isinstance(member, dict) else ():
            parts = member.get(name)
            for m, part in enumerate(parts if isinstance(parts, list) else ()):
                if isinstance(part, dict) and (medium := _medium(url, part, f"{field}[{n}].{name}[{m}]")):
                    yield medium


def _medium(url: str, part: dict[str, Any], path: str) -> Medium | None:
    kind = part.get("type")
    key = _KEYS[url].get(kind) if isinstance(kind, str) else None
    location = part.get(key) if key else None
    if isinstance(location, dict):
        location = location.get("url")
    if key is None or not isinstance(location, str) or not location[:8].lower().startswith(("http://", "https://")):
        return None
    return Medium(part, key, location, f"{path}.{key}")


def _type_of(medium: Medium, declared: str) -> str:
    """Return the type of what a URL names: as the server says, or as its name says. Raises NotFetched."""
    guessed = mimetypes.guess_type(urlsplit(medium.url).path)[0]
    kinds = [kind for kind in (declared.lower(), guessed) if kind and kind != _ANY_TYPE and _TYPE.fullmatch(kind)]
    if medium.key == _FILE:
        return kinds[0] if kinds else _ANY_TYPE
    if picture := next((kind for kind in kinds if kind.startswith("image/")), None):
        return picture
    raise NotFetched(_failure_text(medium, f"it is no picture, but {declared}"[:100]), medium.param)


def _put(medium: Medium, data: str) -> None:
    """Put a `data:` URL in the place of the medium's URL; a file has its bytes under another key, and a name."""
    part, key = medium.part, medium.key
    if key == _FILE:
        del part[_FILE]
        name = unquote(urlsplit(medium.url).path).rpartition("/")[2]
        part |= {"filename": part.get("filename") or name or "file", "file_data": data}
    elif isinstance(part[key], dict):
        part[key]["url"] = data
    else:
        part[key] = data


def _failure_text(medium: Medium, why: str) -> str:
    return f"{medium.key}: the URL cannot be fetched: {why}."
