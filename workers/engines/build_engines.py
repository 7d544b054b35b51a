"""Build the engines that the models file names for a queue, and say what a change of the file means for them."""

import logging
import os
import socket
from functools import partial
from importlib.util import find_spec
from typing import Final

from jobs.fleet import runtimes
from jobs.fleet.models_file import EngineKind, ModelConfig, Models, ModelsFileError, ModelSource, Registry
from jobs.platform.secret_files import secret
from jobs.queues import Queue
from jobs.requests.embedding_prompts import Prompts, prompts_of
from jobs.requests.endpoints import base_of
from jobs.settings import Settings
from jobs.timings import Timings
from workers.engines.encoders.embed import EmbedEngine
from workers.engines.encoders.embed_runtime import Choices
from workers.engines.encoders.rerank import RerankEngine
from workers.engines.http.endpoints import Endpoint
from workers.engines.http.http_engine import HttpEngine, Permission, no_project
from workers.engines.model_folders import package_of, source_of
from workers.engines.ownloop import OwnLoop
from workers.engines.port import Adapter, Engine
from workers.engines.router import Router, loading_of
from workers.engines.swapped_engine import SwappedEngine
from workers.engines.vllm import vllm_adapters
from workers.engines.vllm.vllm_engine import VllmEngine

log = logging.getLogger(__name__)

#: Engines in process by the module that computes.
_LIBRARIES: Final = {
    EngineKind.VLLM: "vllm",
    EngineKind.EMBED: "sentence_transformers",
    EngineKind.RERANK: "sentence_transformers",
}


def build(
    settings: Settings,
    registry: Registry,
    queue: str,
    allows_external: Permission = no_project,
    timings: Timings = Timings(),
) -> Router:
    """Build the router of a worker process of `queue`. No model is loaded before `start`."""
    models = [model for model in registry.models.values() if model.queue == queue and _is_installed(model)]
    engines: list[Engine] = [_embed(model, settings) for model in models if model.engine is EngineKind.EMBED]
    engines += [_rerank(model, settings) for model in models if model.engine is EngineKind.RERANK]
    engines += _vllm([model for model in models if model.engine is EngineKind.VLLM], settings)
    if http := _http(settings, registry, queue, allows_external, timings):
        engines.append(http)
    return Router(engines, registry, allows_external)


def build_tuned_router(settings: Settings, models: Models, timings: Timings = Timings()) -> Router:
    """Build the router of a process that serves tuned models with weights of their own, one at a time."""
    engine = SwappedEngine(partial(_tuned_engine, settings, models), vllm_adapters.engine_version(), timings)
    return Router([engine], models.now())


def _tuned_engine(settings: Settings, models: Models, base: str, adapter: Adapter) -> Engine:
    """Return the engine of a tuned model, with the arguments of its base that are not about adapters."""

    def make() -> Engine:
        known = models.now().models.get(base)
        args = {name: value for name, value in (known.engine_args if known else {}).items() if "lora" not in name}
        source = ModelSource(path=adapter.folder)
        model = ModelConfig(name=base, source=source, engine=EngineKind.VLLM, engine_args=args)
        return make_vllm(model.model_copy(update={"queue": Queue.TUNED}), settings)  # which no model of a file may name

    return OwnLoop([base], make)


def _is_installed(model: ModelConfig) -> bool:
    """Return whether the packages that serve the model are installed.

    Without them the process would only start and end.
    """
    missing = [name for name in (_LIBRARIES.get(model.engine), package_of(model)) if name and find_spec(name) is None]
    if missing:
        log.error("engine_not_installed", extra={"model": model.name, "missing": missing})
    return not missing


def is_outdated(before: Registry, now: Registry, queue: str) -> bool:
    """Return whether the models that a process of `queue` has loaded differ from those in the models file now.

    Raises ModelsFileError.
    """
    then, current = (
        [model for model in registry.models.values() if model.queue == queue and model.engine is not EngineKind.HTTP]
        for registry in (before, now)
    )
    _check_single([model for model in current if model.engine is EngineKind.VLLM])
    return {model.name: loading_of(model) for model in then} != {model.name: loading_of(model) for model in current}


async def refresh(
    router: Router, settings: Settings, registry: Registry, queue: str, timings: Timings = Timings()
) -> None:
    """Adopt the servers of the current models file; loaded models stay. On the engines' loop."""
    if router.engines.servers:
        router.engines.servers[0].adopt(*_servers(settings, registry, queue))
    elif http := _http(settings, registry, queue, router.allows_external, timings):
        await http.start()
        router.engines.add(http)
    router.rename(registry)


def _http(
    settings: Settings, registry: Registry, queue: str, allows_external: Permission, timings: Timings
) -> HttpEngine | None:
    endpoints, prompts = _servers(settings, registry, queue)
    if not endpoints:
        return None
    return HttpEngine(
        endpoints,
        timeout=settings.engine_timeout_seconds,
        prompts=prompts,
        allows_external=allows_external,
        refuses_text_images=settings.refuse_text_images,
        timings=timings,
    )


def _servers(settings: Settings, registry: Registry, queue: str) -> tuple[list[Endpoint], dict[str, Prompts]]:
    """Return the engines for the servers of `queue`, with the prompts of their models from the models file."""
    models = [m for m in registry.models.values() if m.queue == queue and m.engine is EngineKind.HTTP]
    endpoints = _endpoints(models, settings)
    if queue == Queue.GENERATE:
        endpoints += [
            Endpoint(url, settings.engine_api_key, concurrency=settings.engine_concurrency)
            for url in settings.engine_urls
        ]
    return endpoints, {model.name: prompts_of(model.engine_args) for model in models}


def _embed(model: ModelConfig, settings: Settings) -> EmbedEngine:
    source = partial(source_of, model, settings)
    records = Choices(runtimes.folder_of(settings), settings.embedding_floor)
    return EmbedEngine(source, [model.name], revision=model.source.revision, args=model.engine_args, records=records)


def _rerank(model: ModelConfig, settings: Settings) -> RerankEngine:
    source = partial(source_of, model, settings)
    return RerankEngine(source, [model.name], revision=model.source.revision, args=model.engine_args)


def _check_single(models: list[ModelConfig]) -> None:
    if len(models) > 1:
        names = ", ".join(model.name for model in models)
        raise ModelsFileError(f"{names}: a process holds one vLLM model; give each of these a queue of its own")


def _vllm(models: list[ModelConfig], settings: Settings) -> list[Engine]:
    _check_single(models)
    return [OwnLoop([model.name], partial(make_vllm, model, settings)) for model in models]


def make_vllm(model: ModelConfig, settings: Settings) -> VllmEngine:
    args = dict(model.engine_args)
    if model.source.revision:
        args = {"revision": model.source.revision, "tokenizer_revision": model.source.revision} | args
    # One file per host and device: workers of one queue on several GPUs, or in several containers or machines over one
    # data folder, must not end each other's engines. A process number means something on its own host only.
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(",", "_")
    pids = settings.data_dir.absolute() / "run" / f"engine-{model.queue}-{device or 'all'}-{socket.gethostname()}.pids"
    pids.parent.mkdir(parents=True, exist_ok=True)
    return VllmEngine(source_of(model, settings), [model.name], args, pids, patience=settings.engine_silence_seconds)


def _endpoints(models: list[ModelConfig], settings: Settings) -> list[Endpoint]:
    """Return one endpoint for each server and key, with its models from the models file.

    Internal and external models of one server have an endpoint each.
    """
    serves: dict[tuple[str, str, bool], dict[str, str]] = {}
    for model in models:
        key = secret(model.source.api_key_env) if model.source.api_key_env else ""
        if model.source.api_key_env and not key:
            log.error("models_file.key_missing", extra={"model": model.name, "variable": model.source.api_key_env})
            continue
        for url in model.source.urls:
            external = not model.source.is_internal(url)
            serves.setdefault((base_of(url), key, external), {})[model.name] = model.upstream
    concurrency = settings.engine_concurrency
    return [
        Endpoint(url, key, names, concurrency=concurrency, external=external)
        for (url, key, external), names in serves.items()
    ]
