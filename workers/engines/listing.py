"""What an OpenAI-compatible server says of itself: its list of models, and that it is there at all.

200 with a list       its models
404, 405, 501         it has no list: it takes any name
other 5xx, silence    it is not there
whatever else         it has not listed its models yet: a key that is refused, a rate limit, a proxy's page
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp

from jobs.fleet.models_file import ANY_MODEL
from workers.engines import wire
from workers.engines.endpoints import Endpoint
from workers.engines.port import EngineFault

log = logging.getLogger(__name__)

_SECONDS: Final = 5.0
_NO_LIST: Final = frozenset({404, 405, 501})


class Away(Exception):
    """The server is not there."""


async def is_there(session: aiohttp.ClientSession, endpoint: Endpoint) -> bool:
    """Whether it answers anything, or at least takes its time."""
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    try:
        async with session.get(f"{endpoint.url}/v1/models", timeout=timeout, allow_redirects=False):
            return True
    except TimeoutError:
        return True
    except aiohttp.ClientError:
        return False


async def names_of(
    session: aiohttp.ClientSession, endpoint: Endpoint, read: Callable[[aiohttp.ClientResponse], Awaitable[bytes]]
) -> frozenset[str] | None:
    """Return the names of its models, `*` if it has no list, None if it did not show its list; note if it is a vLLM.

    Raises:
        Away: The server does not answer, or answers that it cannot.
    """
    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    url = f"{endpoint.url}/v1/models"
    try:
        async with session.get(url, headers=headers, timeout=timeout, allow_redirects=False) as response:
            status = response.status
            if status >= 500 and status not in _NO_LIST:
                raise Away
            found = wire.listing(await read(response)) if status == 200 else None
    except (aiohttp.ClientError, TimeoutError, EngineFault) as error:
        raise Away from error
    if found is None and status not in _NO_LIST:
        _note_unlisted(endpoint, status)
        return None
    endpoint.unlisted_status = 0
    endpoint.of_vllm = found is not None and found.of_vllm
    return frozenset({ANY_MODEL}) if found is None else found.names


def _note_unlisted(endpoint: Endpoint, status: int) -> None:
    """Log the first of such answers. Where the models file says what the server has, no list is needed."""
    if endpoint.serves is None and endpoint.unlisted_status != status:
        log.error("engine.models_not_listed", extra={"endpoint": endpoint.url, "status": status})
    endpoint.unlisted_status = status
