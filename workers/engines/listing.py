"""What an OpenAI-compatible server says of itself: its list of models, and that it is there at all."""

from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp

from jobs.registry import ANY_MODEL
from workers.engines import wire
from workers.engines.endpoints import Endpoint
from workers.engines.port import EngineFault

_SECONDS: Final = 5.0


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
    """The names of its models, any if it answers without a list, None if it is not there; and whether it is a vLLM."""
    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    url = f"{endpoint.url}/v1/models"
    try:
        async with session.get(url, headers=headers, timeout=timeout, allow_redirects=False) as response:
            if response.status >= 500:
                return None
            found = wire.listing(await read(response)) if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, EngineFault):
        return None
    endpoint.of_vllm = found is not None and found.of_vllm
    return frozenset({ANY_MODEL}) if found is None else found.names
