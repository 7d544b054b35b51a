"""A scripted server, and an engine over it."""

from collections.abc import AsyncIterator

import pytest

from tests.support.scripted_server import Server, engine_of, serving
from workers.engines.http.endpoints import Endpoint
from workers.engines.http.http_engine import HttpEngine


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(Server()) as running:
        yield running


@pytest.fixture
async def engine(server: Server) -> AsyncIterator[HttpEngine]:
    async with engine_of(Endpoint(server.url)) as running:
        yield running
