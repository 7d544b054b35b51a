"""The asked name becomes base and adapter, and stands in every answer; what is deleted or tampered with is refused."""

import asyncio
import errno
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.db.engine import Database
from jobs.errors import StorageUnavailable
from jobs.ledger.tables import Audit
from jobs.platform.storage import DiskStorage
from jobs.registry import models
from jobs.registry.tables import TunedModel
from jobs.security import keys
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support import tuned_adapters
from tests.support.fake_engine import FakeEngine
from workers.engines import probes
from workers.engines.port import Adapter, Answer, EngineBusy, Passage, Request
from workers.engines.probes import Probe
from workers.engines.swapped_engine import SwappedEngine
from workers.middleware.cache import CacheMiddleware
from workers.middleware.response_cache import ResponseCache
from workers.middleware.tuned_models import TunedModelMiddleware, TunedModels
from workers.runtime import adapter_files
from workers.runtime.adapter_files import AdapterFiles

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ONE, OTHER = "ft:fake-model:acme:support:abc", "ft:fake-model:rival:support:def"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    TEXT: {"prompt": "hi"},
    RESPONSES: {"input": "hi"},
}
PATIENT = replace(Timings(), cache_patience=30.0)
AT_ONCE = replace(Timings(), tuned_model_look=0.0)


@dataclass
class Worker:
    """The layer before a cache before the fake engine, or one for `whole` models, and what the engine was asked."""

    db: Database
    folder: Path
    timings: Timings = AT_ONCE
    prompts: list[str] = field(default_factory=list)
    whole: bool = False

    def __post_init__(self) -> None:
        self.storage = DiskStorage(self.folder / "files")
        self.local = self.folder / "adapters"
        self.engine = FakeEngine(("fake-model",), on_prompt=self.prompts.append)
        self.cache = ResponseCache(self.db, 1 << 20, PATIENT)
        config = Settings(data_dir=self.folder, database_url=self.db.url)
        inner = SwappedEngine(self._inner, FakeEngine.version) if self.whole else self.engine
        cached = CacheMiddleware(inner, self.cache, lambda name: (name, "weights"), config)
        models = TunedModels(
            self.db,
            AdapterFiles(self.storage, self.local, whole=self.whole),
            serves=lambda name: name in self.engine.models,
            version_of=lambda _: self.engine.version,
            timings=self.timings,
        )
        self.layer = TunedModelMiddleware(cached, models)
        with self.db.write() as session:
            self.acme, self.rival = (keys.ensure_project(session, name).id for name in ("acme", "rival"))

    def _inner(self, base: str, adapter: Adapter) -> FakeEngine:
        return FakeEngine((base,), on_prompt=self.prompts.append, voice=adapter.name)

    def request(self, name: str, url: str = CHAT, *, project: str | None = None, **body: Any) -> Request:
        return Request(url, {"model": name, **BODIES[url], **body}, "req_1", tenant=project or self.acme)

    async def ask(self, name: str, url: str = CHAT, *, project: str | None = None, **body: Any) -> dict[str, Any]:
        answer = await self.layer.answer(self.request(name, url, project=project, **body))
        self.cache.flush()
        return body_of(answer) | {"http": answer.status}


def body_of(answer: Answer) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(answer.body)
    return body


def code_of(body: dict[str, Any]) -> tuple[int, str]:
    return body["http"], body["error"]["code"]


@pytest.fixture
async def worker(sqlite: Database, tmp_path: Path) -> AsyncIterator[Worker]:
    made = Worker(sqlite, tmp_path)
    await made.engine.start()
    yield made
    made.cache.close()


@pytest.mark.parametrize("url", BODIES)
async def test_answer_comes_from_adapter_under_requested_name(worker: Worker, url: str) -> None:
    adapter = tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme")

    body = await worker.ask(ONE, url)

    assert (body["http"], body["model"]) == (200, ONE)
    assert body["system_fingerprint"] == f"fake-model+{adapter}+fake-1"
    assert adapter in str(body.get("choices") or body["output"])


@pytest.mark.parametrize("url", BODIES)
async def test_stream_events_carry_requested_model_name(worker: Worker, url: str) -> None:
    adapter = tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme")
    events: list[dict[str, Any]] = []

    async def emit(chunk: bytes) -> None:
        events.append(msgspec.json.decode(chunk))

    await worker.layer.stream(worker.request(ONE, url), emit)

    named = [shown for event in events for shown in (event, event.get("response") or {}) if "model" in shown]
    assert named
    assert {shown["model"] for shown in named} == {ONE}
    assert {shown["system_fingerprint"] for shown in named} == {f"fake-model+{adapter}+fake-1"}
    assert adapter in str(events)


async def test_the_base_model_answers_under_its_own_name_and_without_an_adapter(worker: Worker) -> None:
    adapter = tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme")
    await worker.ask(ONE)

    body = await worker.ask("fake-model")

    assert body["model"] == "fake-model"
    assert "system_fingerprint" not in body
    assert adapter not in str(body)


async def test_the_cache_gives_no_adapters_answer_for_another_or_for_the_base(worker: Worker) -> None:
    one = tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme")
    second = tuned_adapters.tuned_model(worker.db, worker.storage, f"{ONE}:ckpt-step-2", project="acme")
    names = (ONE, f"{ONE}:ckpt-step-2", "fake-model")

    first = [await worker.ask(name, temperature=0, cache=True) for name in names]
    again = [await worker.ask(name, temperature=0, cache=True) for name in names]

    assert [body["choices"][0]["message"]["content"].split()[0] for body in first] == [one, second, "echo"]
    assert [body["choices"] for body in again] == [body["choices"] for body in first]
    assert [body["model"] for body in again] == list(names)
    assert len(worker.prompts) == 3


async def test_a_deleted_model_is_not_served_even_from_the_cache_and_its_local_files_go(worker: Worker) -> None:
    adapter = tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme")
    await worker.ask(ONE, temperature=0, cache=True)
    assert (worker.local / adapter).is_dir()

    tuned_adapters.delete(worker.db, ONE)

    assert code_of(await worker.ask(ONE, temperature=0, cache=True)) == (404, "model_deleted")
    assert not (worker.local / adapter).exists()


async def test_fetch_removes_local_files_of_deleted_model(worker: Worker) -> None:
    first = tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme")
    second = tuned_adapters.tuned_model(worker.db, worker.storage, OTHER, project="rival")
    await worker.ask(ONE)
    tuned_adapters.delete(worker.db, ONE)
    await worker.ask(OTHER, project=worker.rival)

    assert [path.name for path in worker.local.iterdir()] == [second] != [first]


@pytest.mark.parametrize("method", ["lora", "full"])
async def test_a_deletion_is_seen_within_two_seconds(sqlite: Database, tmp_path: Path, method: str) -> None:
    assert Timings().tuned_model_look < 2
    worker = Worker(sqlite, tmp_path, Timings(), whole=method == "full")
    await worker.engine.start()
    tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme", method=method)

    reads = worker.layer._tuned_models._rows
    time = 100.0
    reads._clock = lambda: time
    assert (await worker.ask(ONE))["http"] == 200
    tuned_adapters.delete(worker.db, ONE)
    time += 2

    assert code_of(await worker.ask(ONE)) == (404, "model_deleted")
    worker.cache.close()


async def test_another_projects_model_is_unknown_until_it_is_permitted(worker: Worker) -> None:
    tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme")
    unknown = await worker.ask("ft:fake-model:acme::none", project=worker.rival)

    refused = await worker.ask(ONE, project=worker.rival)
    tuned_adapters.permit(worker.db, ONE, "rival")
    permitted = await worker.ask(ONE, project=worker.rival)
    tuned_adapters.forbid(worker.db, ONE)
    withdrawn = await worker.ask(ONE, project=worker.rival)

    assert code_of(refused) == code_of(withdrawn) == code_of(unknown) == (404, "model_not_found")
    assert permitted["model"] == ONE


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "manifest.json"])
async def test_a_tampered_file_is_refused_and_nothing_of_it_is_left(worker: Worker, file: str) -> None:
    adapter = tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme")
    worker.storage.put(f"{tuned_adapters.location_of(worker.db, ONE)}/{file}", b"{}")

    assert code_of(await worker.ask(ONE)) == (500, "adapter_corrupt")
    assert not worker.prompts
    assert not (worker.local / adapter).exists()


async def test_unavailable_storage_raises_busy_until_restored(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme")

    def away(*_: object) -> None:
        raise StorageUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(worker.storage, "reader", away)
        with pytest.raises(EngineBusy):
            await worker.ask(ONE)

    assert (await worker.ask(ONE))["http"] == 200


async def test_modified_local_files_are_refetched(worker: Worker) -> None:
    adapter = tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme")
    weights = worker.local / adapter / "adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"other weights")

    assert (await worker.ask(ONE))["http"] == 200
    assert weights.read_bytes() == f"the weights of {ONE}".encode()


async def test_an_adapter_that_fails_its_probe_is_not_served_until_an_operator_has_decided(worker: Worker) -> None:
    messages, tools = probes.CHATS[2]
    [read] = await worker.engine.score("fake-model", [Passage(messages, tools, (1, 2))], None)
    lying = Probe(
        messages=messages, tools=tools, token_ids=read.token_ids, continuation=(1, 2), logprobs=(-9.0, -9.0),
        base_logprobs=read.logprobs,
    )  # fmt: skip
    tuned_adapters.tuned_model(
        worker.db, worker.storage, ONE, project="acme", files={probes.FILE: msgspec.json.encode([lying])}
    )

    def decide(*, accept: bool) -> None:
        with worker.db.write() as session:
            models.decide_probe(session, ONE, accept=accept, actor="operator")

    for _ in range(2):
        refused = await worker.ask(ONE)
        assert code_of(refused) == (400, "failed_probe")
        assert re.search(r"differ by [78]\.\d{3} nats a token .* 0\.050 are allowed", refused["error"]["message"])
    with worker.db.read() as session:
        assert session.query(TunedModel).filter_by(name=ONE).one().state == "failed_probe"
    decide(accept=False)
    assert code_of(await worker.ask(ONE)) == (400, "failed_probe")
    assert not worker.prompts
    decide(accept=True)
    assert (await worker.ask(ONE))["http"] == 200
    with worker.db.write() as session:
        model = session.query(TunedModel).filter_by(name=ONE).one()
        models.fail_probe(session, model.id, "of a worker that has an earlier row", trial=1)
        assert (model.state, models.probe_of(model).accepted) == ("ready", True)
        assert session.query(Audit).filter_by(action="model.probe", target=model.id).count() == 2


async def test_a_server_with_a_model_of_that_name_keeps_it(worker: Worker) -> None:
    worker.engine.models = ("fake-model", ONE)
    tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme")

    body = await worker.ask(ONE)

    assert (body["http"], body["model"]) == (200, ONE)
    assert body["choices"][0]["message"]["content"].startswith("echo")


# -- models with weights of their own


@pytest.fixture
def whole_worker(sqlite: Database, tmp_path: Path) -> Iterator[Worker]:
    made = Worker(sqlite, tmp_path, whole=True)
    yield made
    made.cache.close()


@pytest.mark.parametrize("url", BODIES)
async def test_a_whole_model_answers_under_its_name_and_from_its_own_cache(whole_worker: Worker, url: str) -> None:
    worker = whole_worker
    names = ONE, f"{ONE}:ckpt-step-2"
    weights = [
        tuned_adapters.tuned_model(worker.db, worker.storage, name, project="acme", method="full") for name in names
    ]

    first = [await worker.ask(name, url, temperature=0, cache=True) for name in names]
    again = [await worker.ask(name, url, temperature=0, cache=True) for name in names]

    for name, own, bodies in zip(names, weights, zip(first, again, strict=True), strict=True):
        for body in bodies:
            assert (body["http"], body["model"]) == (200, name)
            assert body["system_fingerprint"] == f"fake-model+{own}+fake-1"
            assert own in str(body.get("choices") or body["output"])
    assert len(worker.prompts) == 2
    assert {file.name for file in (worker.local / weights[0]).iterdir()} == {"config.json", "model.safetensors"}


async def test_a_deleted_whole_model_is_not_served_even_from_the_cache_and_its_local_files_go(
    whole_worker: Worker,
) -> None:
    worker = whole_worker
    weights = tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme", method="full")
    await worker.ask(ONE, temperature=0, cache=True)

    tuned_adapters.delete(worker.db, ONE)

    assert code_of(await worker.ask(ONE, temperature=0, cache=True)) == (404, "model_deleted")
    assert not (worker.local / weights).exists()


@pytest.mark.parametrize("method", ["lora", "full"])
async def test_a_worker_serves_adapters_or_whole_models(sqlite: Database, tmp_path: Path, method: str) -> None:
    worker = Worker(sqlite, tmp_path, whole=method == "lora")
    tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme", method=method)

    assert code_of(await worker.ask(ONE)) == (400, "model_not_supported")
    assert not worker.prompts
    worker.cache.close()


async def test_concurrent_requests_fetch_files_once(whole_worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, read = whole_worker, list[str]()
    reader = worker.storage.reader
    monkeypatch.setattr(worker.storage, "reader", lambda path, *rest: (read.append(path), reader(path, *rest))[1])
    tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme", method="full")

    bodies = await asyncio.gather(*(worker.ask(ONE) for _ in range(40)))

    assert {body["http"] for body in bodies} == {200}
    assert len(read) == len(set(read)) == 3


async def test_a_full_disk_of_the_worker_is_waited_for(whole_worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = whole_worker
    tuned_adapters.tuned_model(worker.db, worker.storage, ONE, project="acme", method="full")

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(adapter_files, "_hash", full)
        with pytest.raises(EngineBusy):
            await worker.ask(ONE)

    assert (await worker.ask(ONE))["http"] == 200
