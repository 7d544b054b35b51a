"""Requests that other workers answer end with an error when these break."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from jobs.db.engine import Database
from jobs.errors import NoWorker, WorkerLost
from jobs.fleet.models_file import Models
from jobs.fleet.routing import Route
from jobs.inference.interactive import PRIORITY, AnswerEntry, QueuedRequest
from jobs.ledger import pauses
from jobs.retrieval.searches import Search
from jobs.security import keys
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support.fake_engine import FakeEngine, reply
from workers.engines.port import Answer, EngineBusy, EngineFault, Request, refusal
from workers.inference import peer_client
from workers.inference.peer_client import PeerClient
from workers.runtime.answering import Answering
from workers.runtime.engine_host import EngineHost
from workers.runtime.output_lines import Item

CHAT = "/v1/chat/completions"
TAKEN = AnswerEntry("taken")
REQUEST = Request(CHAT, {"model": "large", "messages": [{"role": "user", "content": "Hi"}]}, "r1", tenant="p")


def _end(answer: Answer) -> AnswerEntry:
    return AnswerEntry("end", answer.body, answer.status)


DIED = _end(refusal(503, "The engine ended while it answered. Ask again.", code="engine_died"))
BUSY = _end(refusal(503, "The engine is busy. Ask again in a moment.", code="engine_busy"))
LEAVING = _end(refusal(503, "This worker is going down.", code="worker_lost"))
SLOW = _end(refusal(408, "The model did not answer in time.", code="timeout"))
BROKE = _end(refusal(500, "The engine gave no answer.", code="engine_error"))
NO_VECTOR = _end(refusal(502, "The embedding model gave no vector for this query.", code="engine_error"))
GOOD = _end(reply(CHAT, REQUEST.body, "Hi"))
SEARCH = Search(model="", store_id="vs_1", queries=("x",))


class Told:
    """The other workers: they say these pieces, and then it breaks, if it does."""

    def __init__(self, *pieces: AnswerEntry, breaks: Exception | None = None) -> None:
        self.pieces, self.breaks = pieces, breaks
        self.asked: list[tuple[str, QueuedRequest]] = []

    async def submit(self, line: str, queued: QueuedRequest, _served: Any) -> AsyncIterator[AnswerEntry]:
        self.asked.append((line, queued))
        for piece in self.pieces:
            yield piece
        if self.breaks:
            raise self.breaks

    async def close(self) -> None: ...


Make = Callable[[Told], PeerClient]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    def made(told: Told) -> PeerClient:
        monkeypatch.setattr(peer_client, "InferenceClient", lambda *_: told)
        context: Any = SimpleNamespace(config=SimpleNamespace(interactive_seconds=60.0), timings=Timings())
        return PeerClient(context)

    return made


@pytest.mark.parametrize(
    "told",
    [
        Told(TAKEN, DIED),
        Told(TAKEN, AnswerEntry("chunk", b"{}"), DIED),
        Told(TAKEN, AnswerEntry("alive"), breaks=WorkerLost()),
    ],
)
async def test_peer_engine_death_raises_unreachable_fault(make: Make, told: Told) -> None:
    with pytest.raises(EngineFault) as fault:
        await make(told).forward("gpu.large", REQUEST)

    assert fault.value.unreachable
    assert fault.value.answer
    assert fault.value.answer.status == 503


@pytest.mark.parametrize(
    "told", [Told(TAKEN, BUSY), Told(TAKEN, LEAVING), Told(breaks=WorkerLost()), Told(breaks=NoWorker())]
)
async def test_request_not_begun_by_peer_raises_busy(make: Make, told: Told) -> None:
    with pytest.raises(EngineBusy):
        await make(told).forward("gpu.large", REQUEST)


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Create the store that is searched."""
    index = SimpleNamespace(id="vs_1", model="embedder")
    monkeypatch.setattr(PeerClient, "_find_index", lambda *_: ("gpu.embed", index))


@pytest.mark.usefixtures("placed")
@pytest.mark.parametrize(
    ("end", "unreachable"), [(BROKE, False), (NO_VECTOR, False), (DIED, True)], ids=["broke", "no vector", "died"]
)
async def test_a_search_that_breaks_counts(make: Make, end: AnswerEntry, unreachable: bool) -> None:
    with pytest.raises(EngineFault) as fault:
        await make(Told(TAKEN, end)).search(REQUEST, SEARCH)

    assert fault.value.unreachable == unreachable
    assert fault.value.answer == Answer(end.status, end.body)


@pytest.mark.usefixtures("placed")
@pytest.mark.parametrize(
    "told",
    [
        Told(TAKEN, BUSY),
        Told(TAKEN, LEAVING),
        Told(TAKEN, SLOW),
        Told(breaks=WorkerLost()),
        Told(breaks=NoWorker()),
    ],
    ids=["busy", "leaving", "slow", "lost before it began", "no worker"],
)
async def test_temporarily_unavailable_search_raises_busy(make: Make, told: Told) -> None:
    with pytest.raises(EngineBusy):
        await make(told).search(REQUEST, SEARCH)


async def test_a_models_file_that_is_broken_is_waited_for(sqlite: Database, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("models: {secret: [")
    config = Settings(data_dir=tmp_path, models_file=str(file))
    context: Any = SimpleNamespace(config=config, db=sqlite, models=Models(config), timings=Timings())

    with pytest.raises(EngineBusy) as busy:
        await PeerClient(context).find_route(REQUEST, "large", CHAT, "context.route_long")

    assert "secret" not in str(busy.value)


async def test_request_of_a_revoked_key_is_refused(sqlite: Database, tmp_path: Path) -> None:
    config = Settings(data_dir=tmp_path)
    context: Any = SimpleNamespace(config=config, db=sqlite, models=Models(config), timings=Timings())
    with sqlite.write() as session:
        project_id = keys.ensure_project(session, "p").id
        key_id = keys.id_of(keys.add_key(session, project_id))
        keys.revoke_key(session, key_id)

    asked = replace(REQUEST, tenant=project_id, key_id=key_id)
    answer = await PeerClient(context).find_route(asked, "large", CHAT, "context.route_long")

    assert isinstance(answer, Answer)
    assert (answer.status, b'"key_revoked"' in answer.body) == (400, True)


@pytest.mark.parametrize(("scope", "name"), [("queue", "gpu.large"), ("model", "large"), ("project", "p")])
async def test_paused_queue_model_or_project_raises_busy(
    sqlite: Database, tmp_path: Path, scope: str, name: str
) -> None:
    file = tmp_path / "models.yaml"
    source = '{source: {urls: ["http://127.0.0.1:9/v1"]}, engine: http, queue: gpu.large'
    file.write_text(f"models: {{large: {source}, endpoints: [{CHAT}]}}}}")
    config = Settings(data_dir=tmp_path, models_file=str(file))
    context: Any = SimpleNamespace(config=config, db=sqlite, models=Models(config), timings=Timings())
    asked = PeerClient(context)

    assert await asked.find_route(REQUEST, "large", CHAT, "context.route_long") == Route("gpu.large", "large")
    with sqlite.write() as session:
        pauses.pause(session, pauses.Scope(scope), name, actor="test")
    with pytest.raises(EngineBusy, match="paused"):
        await asked.find_route(REQUEST, "large", CHAT, "context.route_long")


async def test_forwarded_batch_line_has_no_interactive_priority(make: Make) -> None:
    told = Told(TAKEN, GOOD)
    asked = make(told)

    await asked.forward("large", REQUEST)
    await asked.forward("large", replace(REQUEST, priority=PRIORITY))
    await asked.forward("large", replace(REQUEST, url="/v1/embeddings", priority=3, job_id="batch_1"))

    lines = [(line, queued.priority == PRIORITY) for line, queued in told.asked]
    assert lines == [("large:lines", False), ("large:routed_queue", True), ("large:search", False)]
    assert told.asked[-1][1].job_id == "batch_1"


@pytest.fixture
def host() -> Iterator[EngineHost]:
    made = EngineHost(FakeEngine(), lambda: None, timings=replace(Timings(), engine_busy=1.0))
    made.start()
    yield made
    made.close()


def test_a_line_that_takes_the_other_engine_down_is_given_up_in_the_end(make: Make, host: EngineHost) -> None:
    told = Told(TAKEN, DIED)
    asked = make(told)
    item = Item(0, "r0", "batch_req_0", REQUEST)

    run = Answering(host, 4, lambda *_: None, lambda request: asked.forward("gpu.large", request)).run([item])

    assert host.call(run).result(30) == [item]
    assert len(told.asked) == 4
    assert isinstance(item.fault, EngineFault)
    assert item.fault.answer
    assert msgspec.json.decode(item.fault.answer.body)["error"]["code"] == "engine_died"


@pytest.mark.usefixtures("placed")
def test_line_with_failing_search_fails_after_limited_attempts(make: Make, host: EngineHost) -> None:
    told = Told(TAKEN, BROKE)
    asked = make(told)
    item = Item(0, "r0", "batch_req_0", REQUEST)

    async def search(request: Request) -> Answer:
        await asked.search(request, SEARCH)
        raise AssertionError("it does not break")

    run = Answering(host, 4, lambda *_: None, search).run([item])

    assert host.call(run).result(30) == [item]
    assert len(told.asked) == 4
    assert isinstance(item.fault, EngineFault)
    assert item.fault.answer == Answer(BROKE.status, BROKE.body)
