"""A cache before an engine that is listened to."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.db.engine import Database
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support.fake_engine import FakeEngine, prompt_of
from workers.engines.port import Answer, Request
from workers.middleware.cache import CacheMiddleware
from workers.middleware.response_cache import ResponseCache

#: Written when the test says so, and patient with a busy machine.
PATIENT = replace(Timings(), cache_gather=3600.0, cache_patience=30.0)


@dataclass
class Counter:
    """A cache over a fake engine, both to be looked at."""

    db: Database
    response_cache: ResponseCache
    config: Settings
    asked: list[Request] = field(default_factory=list)
    says: Callable[[Request], Answer | BaseException | None] = lambda _: None
    weights: str = "first"

    def __post_init__(self) -> None:
        self.engine = FakeEngine(("m",), fault=self._hear)
        self.cached = CacheMiddleware(self.engine, self.response_cache, self._identity, self.config)

    @property
    def prompts(self) -> list[str]:
        return [prompt_of(request.url, request.body) for request in self.asked]

    async def ask(self, url: str, **body: Any) -> Any:
        """Return the answer's JSON and its status after the cache was written."""
        facts = {name: body.pop(name) for name in ("tenant", "job_id", "cacheable") if name in body}
        request = Request(url, {"model": "m", **body}, "req_1", **{"tenant": "proj_1", **facts})
        answer = await self.cached.answer(request)
        self.response_cache.flush()
        said = msgspec.json.decode(answer.body)
        return said | {"http": answer.status, "used": (answer.usage.input_tokens, answer.usage.cached_tokens)}

    def _hear(self, request: Request) -> Answer | BaseException | None:
        self.asked.append(request)
        return self.says(request)

    def _identity(self, name: str) -> tuple[str, str] | None:
        return None if self.weights == "unknown" else ("m", self.weights)


@pytest.fixture
def make_counter(db: Database, tmp_path: Path) -> Iterator[Callable[..., Counter]]:
    with ExitStack() as stack:

        def make(**settings: Any) -> Counter:
            response_cache = ResponseCache(db, 1 << 28, PATIENT)
            stack.callback(response_cache.close)
            return Counter(db, response_cache, Settings(data_dir=tmp_path, database_url=db.url, **settings))

        yield make


@pytest.fixture
async def counter(make_counter: Callable[..., Counter]) -> Counter:
    made = make_counter()
    await made.cached.start()
    return made
