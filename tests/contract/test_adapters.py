"""Adapters through the engine port: the fake engine, the same on a loop of its own, vLLM with a small real model."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.contract.test_vllm_engine import MODELS
from tests.support import random_adapters
from tests.support.fake_engine import FakeEngine
from tests.support.vllm_host import Host
from workers.engines import probes
from workers.engines.model_folders import SMOLLM2, materialise
from workers.engines.ownloop import OwnLoop
from workers.engines.port import Adapter, AdapterEngine, AdapterRefused, Engine, Request

CHAT = "/v1/chat/completions"
MODEL = "smol"
LIMIT = 2
TEXTS = ("Say hello.", "Name a colour.", "What is rain?", "Tell me a story.")
ARGS: dict[str, Any] = {
    "max_model_len": 2048,
    "max_num_seqs": 16,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 1 << 29,
    "enable_lora": True,
    "max_lora_rank": 32,
    "max_loras": LIMIT + 1,
}


@dataclass
class Subject:
    """An engine with three adapters. `ask` returns the text that answers a prompt, with an adapter or without one."""

    ask: Callable[[str, Adapter | None], Awaitable[str]]
    adapters: list[Adapter]
    stranger: Adapter  # whose files are no adapter
    liar: Adapter  # whose trainer says otherwise


def _named(folder: Path, number: int) -> Adapter:
    return Adapter(f"lora-{number:016x}", f"{number:064x}", folder)


def _body(prompt: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 16}


def _text(body: dict[str, Any]) -> str:
    assert body["model"] == MODEL
    return str(body["choices"][0]["message"]["content"])


async def _of(engine: Engine, folder: Path) -> Subject:
    async def ask(prompt: str, adapter: Adapter | None) -> str:
        answer = await engine.answer(Request(CHAT, _body(prompt), "req", adapter=adapter))
        assert answer.status == 200, answer.body
        return _text(msgspec.json.decode(answer.body))

    made = [_named(folder / str(number), number) for number in range(5)]
    for adapter in made:
        adapter.folder.mkdir()
    for adapter in (*made[:3], made[4]):
        (adapter.folder / "adapter_config.json").write_text("{}")
    probe = probes.Probe(messages=[], token_ids=(1,), continuation=(), logprobs=(), base_logprobs=())
    probes.write(made[4].folder, [probe])
    return Subject(ask, made[:3], made[3], made[4])


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    model, folder = materialise(SMOLLM2, MODELS), tmp_path_factory.mktemp("adapters")
    made = [_named(folder / str(number), number) for number in range(5)]
    random_adapters.make(model, [adapter.folder for adapter in made[:3]])
    made[3].folder.mkdir()
    (made[3].folder / "adapter_config.json").write_text("{}")
    shutil.copytree(made[0].folder, made[4].folder)
    shutil.copy(made[1].folder / probes.FILE, made[4].folder)
    with (folder / "vllm.log").open("wb") as log:
        host = Host(model, [MODEL], ARGS, folder / "engine.pids", log)
        started = host.start()
        assert "error" not in started, (folder / "vllm.log").read_text()[-4000:]

        async def ask(prompt: str, adapter: Adapter | None) -> str:
            chosen = (adapter.name, str(adapter.folder)) if adapter else None
            _, future = host.send("answer", url=CHAT, body=_body(prompt), adapter=chosen)
            said = await asyncio.wrap_future(future)
            if said.get("error") == "AdapterRefused":
                raise AdapterRefused(said["message"])
            assert said.get("status") == 200, json.dumps(said)
            return _text(said["body"])

        yield Subject(ask, made[:3], made[3], made[4])
        host.stop()


REAL = [pytest.mark.soak, pytest.mark.vllm, pytest.mark.timeout(1500)]


@pytest.fixture(params=["fake", "own-loop", pytest.param("vllm", marks=REAL)])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    if request.param == "vllm":
        yield request.getfixturevalue("vllm")
        return
    fake = FakeEngine((MODEL,), delay=0.001, adapters=LIMIT)
    engine: Engine = fake if request.param == "fake" else OwnLoop([MODEL], lambda: fake)
    await engine.start()
    assert isinstance(engine, AdapterEngine)
    assert (engine.adapters, engine.version) == (LIMIT, "fake-1")
    yield await _of(engine, tmp_path)
    await engine.close()


async def test_each_adapter_has_own_answer_and_repeats_answer_after_reload(subject: Subject) -> None:
    everyone = [None, *subject.adapters]

    first = [await subject.ask(TEXTS[0], adapter) for adapter in everyone]
    again = [await subject.ask(TEXTS[0], adapter) for adapter in everyone]

    assert len(set(first)) == 4
    assert again == first


async def test_concurrent_requests_never_get_answer_of_another_adapter(subject: Subject) -> None:
    everyone = [None, *subject.adapters]
    alone = {(text, adapter): await subject.ask(text, adapter) for adapter in everyone for text in TEXTS}
    by_text = [{alone[text, adapter] for adapter in everyone} for text in TEXTS]
    assert all(len(answers) == 4 for answers in by_text), by_text

    pairs = [pair for _ in range(3) for pair in alone]
    answers = await asyncio.gather(*(subject.ask(*pair) for pair in pairs))

    wrong = [
        (pair[0], pair[1] and pair[1].name)
        for pair, answer in zip(pairs, answers, strict=True)
        if answer != alone[pair] and answer in {alone[pair[0], other] for other in everyone if other is not pair[1]}
    ]
    assert not wrong
    same = sum(answer == alone[pair] for pair, answer in zip(pairs, answers, strict=True))
    assert same >= len(pairs) * 0.9  # a batch of another size rounds otherwise now and then


async def test_invalid_adapters_and_adapters_with_other_answers_are_refused(subject: Subject) -> None:
    for adapter in (subject.stranger, subject.liar):
        with pytest.raises(AdapterRefused):
            await subject.ask(TEXTS[0], adapter)

    assert await subject.ask(TEXTS[0], subject.adapters[0])
