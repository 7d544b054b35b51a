"""The engines of one worker process as one engine, and how they are built from the models file.

What no engine may be asked (`workers.engines.caps`) is refused here, before any of them is chosen.

name ── registry.target ──▶ an engine that has the model ── else ──▶ an endpoint that takes any name
"""

import asyncio
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from jobs.fleet import runtimes
from jobs.fleet.models_file import ANY_MODEL, EngineKind, Model, ModelsFileError, Registry
from jobs.platform.secret_files import secret
from jobs.queues import Queue
from jobs.requests.endpoints import base_of
from jobs.requests.prompts import Prompts, prompts_of
from jobs.settings import Settings
from workers.engines.caps import objection
from workers.engines.encoders.embed import EmbedEngine
from workers.engines.encoders.embed_runtime import Place
from workers.engines.encoders.rerank import RerankEngine
from workers.engines.endpoints import Endpoint
from workers.engines.http import HttpEngine, Permission, no_project
from workers.engines.lengths import estimate
from workers.engines.model_folders import identity_of, materialise
from workers.engines.ownloop import OwnLoop
from workers.engines.port import (
    Answer,
    Crowded,
    Emit,
    Engine,
    EngineDead,
    Length,
    Request,
    Suspect,
    Unserved,
    Wards,
    unknown_model,
)
from workers.engines.vllm.vllm_engine import VllmEngine

log = logging.getLogger(__name__)
_CLOSING_SECONDS = 30.0  # for an engine that is left alone


class Router:
    """An engine made of engines. When the models file has changed see `refresh`.

    Those in `shut` are left alone: their models are not served, and nothing builds them, until `reopen`.
    `allows_external` says which projects' prompts may go to external servers.
    """

    def __init__(self, engines: Sequence[Engine], registry: Registry, allows_external: Permission = no_project) -> None:
        self.allows_external = allows_external
        self.engines = tuple(engines)  # without those that are shut
        self.shut: tuple[Engine, ...] = ()
        self.wards: Wards | None = None  # without them whatever dies is built again
        self.registry = registry
        self._crowded = [engine for engine in engines if isinstance(engine, Crowded)]  # asked for each line
        #: Of what was loaded: weights that change in place meanwhile are not loaded anew.
        self._identities = {name: identity_of(model) for name, model in registry.models.items()}

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for engine in self.engines for name in engine.models))

    @property
    def there(self) -> frozenset[str]:
        """Those of them that may be asked for now: not what only servers have that are away.

        That a server takes any name is said all the same: without it a batch of a name that it alone has were refused.
        """
        servers = [one for engine in self.engines if isinstance(engine, HttpEngine) for one in engine.endpoints]
        away = frozenset[str]().union(*(server.models for server in servers if not server.circuit.closed))
        own = (engine.models for engine in self.engines if not isinstance(engine, HttpEngine))
        here = frozenset({ANY_MODEL}).union(*own, *(server.models for server in servers if server.circuit.closed))
        return frozenset(self.models) - (away - here)

    @property
    def discovered(self) -> Mapping[str, bool]:
        """Models that endpoints have shown, and whether only external endpoints have them."""
        found = [engine.discovered for engine in self.engines if isinstance(engine, HttpEngine)]
        return {name: external for models in found for name, external in models.items()}

    @property
    def shared(self) -> bool:
        """Whether other processes may ask the same engines."""
        return any(isinstance(engine, HttpEngine) for engine in self.engines)

    def crowd(self, beside: int) -> tuple[int, int] | None:
        """How many requests of a batch go in at once, with and without somebody who waits; None: all."""
        for engine in self._crowded:
            if crowd := engine.crowd(beside):
                return crowd
        return None

    def identity(self, name: str) -> tuple[str, str] | None:
        """What a name goes by here, and which weights those are; None where the models file does not say."""
        target = self.registry.target(name, self.models) or name
        if target not in self._identities or target in self.discovered:
            return None
        return target, self._identities[target]

    @property
    def own(self) -> tuple[Engine, ...]:
        """The engines that are in this process, and are not shut."""
        return tuple(engine for engine in self.engines if not isinstance(engine, HttpEngine))

    async def start(self) -> None:
        """Start what is not running; if any engine fails, the others run and its error is raised."""
        outcomes = await asyncio.gather(*(self._start(engine) for engine in self.engines), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _start(self, engine: Engine) -> None:
        """Raises what keeps it from starting, unless it is left alone for that."""
        if isinstance(engine, HttpEngine):
            await engine.start()
            return
        try:
            await self._build(engine)
        except Exception as error:
            if not await self._is_over(engine, error, (), starting=True):
                raise
            await self.close_off(engine)

    async def _build(self, engine: Engine) -> None:
        if self.wards is None:
            await engine.start()
            return
        await self.wards.builds(engine.models)
        await engine.start()
        await self.wards.came_up(engine.models)

    async def _is_over(self, engine: Engine, error: Exception, suspects: Sequence[Suspect], *, starting: bool) -> bool:
        return self.wards is not None and await self.wards.died(engine.models, error, suspects, starting=starting)

    async def mourn(self, death: EngineDead, suspects: Sequence[Suspect]) -> None:
        """An engine has died while it was asked: it is left alone, or `start` builds it again."""
        own = self.own
        engine = next((one for one in own if one.models == death.models), None)
        if engine is None and not death.models and len(own) == 1:
            engine = own[0]
        if engine is None:
            return
        asked = [suspect for suspect in suspects if self._target(suspect.model)[1] is engine]
        if await self._is_over(engine, death, asked, starting=False):
            await self.close_off(engine)

    async def close_off(self, engine: Engine) -> None:
        """Leave it alone from now on, and free what it has."""
        self.leave_alone(engine)
        try:
            await asyncio.wait_for(engine.close(), _CLOSING_SECONDS)
        except Exception:
            log.exception("engine_close_failed", extra={"models": engine.models})

    def leave_alone(self, engine: Engine) -> None:
        """The same before it has been built."""
        self.engines = tuple(one for one in self.engines if one is not engine)
        self.shut = (*self.shut, engine)

    async def reopen(self, engine: Engine) -> None:
        """Build one that is shut; it stays so if it does not come up."""
        try:
            await self._build(engine)
        except Exception as error:
            log.exception("engine_trial_failed", extra={"models": engine.models})
            await self._is_over(engine, error, (), starting=True)
            self.shut = tuple(one for one in self.shut if one is not engine)
            await self.close_off(engine)
        else:
            self.shut = tuple(one for one in self.shut if one is not engine)
            self.engines = (engine, *self.engines)

    async def answer(self, request: Request) -> Answer:
        if refused := objection(request.url, request.body):
            return refused
        name = str(request.body.get("model"))
        engine = self._having(name)  # nearly always: nothing else is looked up for each of a million requests
        if engine is None:
            engine, request = self._find(name, request)
        if engine is None:
            return self._unserved(name)
        try:
            return await engine.answer(request)
        except EngineDead as death:
            death.models = engine.models
            raise

    async def stream(self, request: Request, emit: Emit) -> Answer:
        if refused := objection(request.url, request.body):
            return refused
        name = str(request.body.get("model"))
        engine, request = self._find(name, request)
        if engine is None:
            return self._unserved(name)
        try:
            return await engine.stream(request, emit)
        except EngineDead as death:
            death.models = engine.models
            raise

    async def length(self, request: Request) -> Length | None:
        """Of a chat or a response. None where its engine cannot put it into tokens; it will say why when asked.

        Raises EngineBusy where nobody here serves its model now.
        """
        if objection(request.url, request.body):
            return None
        name = str(request.body.get("model"))
        engine, request = self._find(name, request)
        if engine is None:
            self._unserved(name)
            return None
        if count := getattr(engine, "length", None):
            counted: Length | None = await count(request)
            return counted
        known = self.registry.resolve(name)
        return Length(estimate(request.url, request.body), known.max_model_len if known else None, exact=False)

    async def close(self) -> None:
        await asyncio.gather(*(engine.close() for engine in (*self.engines, *self.shut)))

    def rename(self, registry: Registry) -> None:
        """Names, and what else may change of a model that stays loaded, are as another registry has them."""
        before = self.registry.models
        same = {
            name for name, model in registry.models.items() if name in before and _load(before[name]) == _load(model)
        }
        self._identities = {
            name: self._identities[name] if name in same else identity_of(model)
            for name, model in registry.models.items()
        }
        self.registry = registry

    def _find(self, name: str, request: Request) -> tuple[Engine | None, Request]:
        """The engine that serves `name`, and the request under the name that it goes by there."""
        target, engine = self._target(name)
        if target not in (None, name):
            request = replace(request, body={**request.body, "model": target})
        return engine, request

    def _target(self, name: str) -> tuple[str | None, Engine | None]:
        target = self.registry.target(name, self.models)
        return target, self._engine_of(target) if target else None

    def _having(self, name: str) -> Engine | None:
        for engine in self.engines:
            if name in engine.models:
                return engine
        return None

    def _engine_of(self, target: str) -> Engine | None:
        if (engine := self._having(target)) or target in self.registry.models:
            return engine  # or None: it has a worker of its own, and an endpoint that takes any name is not meant
        return self._having(ANY_MODEL)

    def _unserved(self, name: str) -> Answer:
        unsettled = any(isinstance(engine, HttpEngine) and not engine.settled for engine in self.engines)
        if unsettled or self.registry.resolve(name):
            raise Unserved(f"This worker does not serve the model `{name}` now.", retry_after=1.0)
        return unknown_model(name)


def build(settings: Settings, registry: Registry, queue: str, allows_external: Permission = no_project) -> Router:
    """What a worker process of `queue` serves. Nothing is loaded before `start`."""
    mine = [model for model in registry.models.values() if model.queue == queue]
    engines: list[Engine] = [_embed(model, settings) for model in mine if model.engine is EngineKind.EMBED]
    engines += [_rerank(model, settings) for model in mine if model.engine is EngineKind.RERANK]
    engines += _vllm([model for model in mine if model.engine is EngineKind.VLLM], settings)
    if http := _http(settings, registry, queue, allows_external):
        engines.append(http)
    return Router(engines, registry, allows_external)


def outdated(before: Registry, now: Registry, queue: str) -> bool:
    """Whether what a process of `queue` has loaded itself is something else now. Raises ModelsFileError: never is."""
    then, wanted = (
        [model for model in registry.models.values() if model.queue == queue and model.engine is not EngineKind.HTTP]
        for registry in (before, now)
    )
    _check_one([model for model in wanted if model.engine is EngineKind.VLLM])
    return {model.name: _load(model) for model in then} != {model.name: _load(model) for model in wanted}


async def refresh(router: Router, settings: Settings, registry: Registry, queue: str) -> None:
    """Ask the servers that the models file has now; what is loaded in this process stays. On the engines' loop."""
    there = next((engine for engine in router.engines if isinstance(engine, HttpEngine)), None)
    if there is not None:
        there.adopt(*_servers(settings, registry, queue))
    elif http := _http(settings, registry, queue, router.allows_external):
        await http.start()
        router.engines = (*router.engines, http)
    router.rename(registry)


def _http(settings: Settings, registry: Registry, queue: str, allows_external: Permission) -> HttpEngine | None:
    endpoints, found = _servers(settings, registry, queue)
    if not endpoints:
        return None
    return HttpEngine(
        endpoints,
        timeout=settings.engine_timeout_seconds,
        max_answer_bytes=settings.engine_max_answer_bytes,
        prompts=found,
        allows_external=allows_external,
        refuses_text_images=settings.refuse_text_images,
    )


def _servers(settings: Settings, registry: Registry, queue: str) -> tuple[list[Endpoint], dict[str, Prompts]]:
    """The servers that `queue` has, and the prompts of the models that the file says they have."""
    mine = [m for m in registry.models.values() if m.queue == queue and m.engine is EngineKind.HTTP]
    endpoints = _endpoints(mine, settings)
    if queue == Queue.GENERATE:
        endpoints += [
            Endpoint(url, settings.engine_api_key, concurrency=settings.engine_concurrency)
            for url in settings.engine_urls
        ]
    return endpoints, {model.name: prompts_of(model.engine_args) for model in mine}


def _load(model: Model) -> tuple[object, ...]:
    """What is loaded, and how."""
    return model.engine, model.source, model.engine_args, model.own_fields


def source_of(model: Model, settings: Settings) -> str:
    """The folder or hub name of a model; a packaged one may take a minute to make."""
    source = model.source
    if source.packaged:
        return str(materialise(source.packaged, models_dir(settings)))
    return str(source.path) if source.path else str(source.repo)


def models_dir(settings: Settings) -> Path:
    return settings.data_dir.absolute() / "models"


def _embed(model: Model, settings: Settings) -> EmbedEngine:
    source = partial(source_of, model, settings)
    place = Place(runtimes.folder_of(settings), settings.embedding_floor)
    return EmbedEngine(source, [model.name], revision=model.source.revision, args=model.engine_args, place=place)


def _rerank(model: Model, settings: Settings) -> RerankEngine:
    source = partial(source_of, model, settings)
    return RerankEngine(source, [model.name], revision=model.source.revision, args=model.engine_args)


def _check_one(models: list[Model]) -> None:
    if len(models) > 1:
        names = ", ".join(model.name for model in models)
        raise ModelsFileError(f"{names}: a process holds one vLLM model; give each of these a queue of its own")


def _vllm(models: list[Model], settings: Settings) -> list[Engine]:
    _check_one(models)
    return [OwnLoop([model.name], partial(make_vllm, model, settings)) for model in models]


def make_vllm(model: Model, settings: Settings) -> VllmEngine:
    args = dict(model.engine_args)
    if model.source.revision:
        args = {"revision": model.source.revision, "tokenizer_revision": model.source.revision} | args
    # One file per host and device: workers of one queue on several GPUs, or in several containers or machines over one
    # data folder, must not end each other's engines. A process number means something on its own host only.
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(",", "_")
    pids = settings.data_dir.absolute() / "run" / f"engine-{model.queue}-{device or 'all'}-{socket.gethostname()}.pids"
    pids.parent.mkdir(parents=True, exist_ok=True)
    own, silence = model.own_fields, settings.engine_silence_seconds
    return VllmEngine(source_of(model, settings), [model.name], args, pids, own_fields=own, silence=silence)


def _endpoints(models: list[Model], settings: Settings) -> list[Endpoint]:
    """One endpoint per server and key, with all models that the file says it has.

    Models of one server that are not alike internal are two endpoints.
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
    most = settings.engine_concurrency
    return [
        Endpoint(url, key, names, concurrency=most, external=external) for (url, key, external), names in serves.items()
    ]
