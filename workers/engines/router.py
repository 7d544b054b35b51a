"""The engines of one worker process as one engine: each request goes to the engine that has its model.

name ── registry.target ──▶ an engine that has the model ── else ──▶ an endpoint that takes any name

A request that `workers.engines.caps` forbids is refused here, before an engine is chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from jobs.fleet.models_file import ANY_MODEL, ModelConfig, Registry
from jobs.registry.models import base_model_of
from jobs.requests.endpoints import CHAT, RESPONSES
from workers.engines.caps import objection
from workers.engines.engine_set import EngineSet
from workers.engines.http.http_engine import Permission, no_project
from workers.engines.model_folders import identity_of
from workers.engines.port import (
    AdapterEngine,
    Answer,
    BatchLimited,
    Emit,
    Engine,
    EngineDead,
    Length,
    Request,
    Suspect,
    Unserved,
    refusal,
    unknown_model,
)

BYTES_A_TOKEN: Final = 3
_A_MESSAGE: Final = 4  # tokens that a chat template puts around a message
_PROMPT: Final = {
    CHAT: ("messages", "tools", "functions"),
    RESPONSES: ("input", "instructions", "tools"),
}


class Router:
    """The engines of this process behind one port. `build_engines.refresh` adopts a changed models file.

    `allows_external` says whether a project's prompts may go to external servers.
    """

    def __init__(self, engines: Sequence[Engine], registry: Registry, allows_external: Permission = no_project) -> None:
        self.allows_external = allows_external
        self.engines = EngineSet(engines)
        self.registry = registry
        self._batch_limited = [engine for engine in engines if isinstance(engine, BatchLimited)]  # used for each line
        #: Of the loaded weights: weights that change on disk meanwhile are not loaded again.
        self._identities = {name: identity_of(model) for name, model in registry.models.items()}

    @property
    def models(self) -> tuple[str, ...]:
        return self.engines.models

    @property
    def reachable_models(self) -> frozenset[str]:
        """Return the models that can be asked now, without models whose servers are all unreachable.

        `ANY_MODEL` of an unreachable server is among them: without it, a batch for a name that only this server has
        would be refused.
        """
        servers = [endpoint for engine in self.engines.servers for endpoint in engine.endpoints]
        unavailable = frozenset[str]().union(*(server.models for server in servers if not server.circuit.is_closed))
        own = (engine.models for engine in self.engines.own)
        here = frozenset({ANY_MODEL}).union(*own, *(server.models for server in servers if server.circuit.is_closed))
        return frozenset(self.models) - (unavailable - here)

    @property
    def discovered_models(self) -> Mapping[str, bool]:
        """Return the models that endpoints have listed, and whether only external endpoints have them."""
        return {
            name: external for engine in self.engines.servers for name, external in engine.discovered_models.items()
        }

    @property
    def is_shared(self) -> bool:
        """Return whether other processes may ask the same engines."""
        return bool(self.engines.servers)

    def batch_limits(self, while_interactive: int) -> tuple[int, int] | None:
        """Return how many lines of batches run at once, with and without an interactive client; None: any number."""
        for engine in self._batch_limited:
            if limits := engine.batch_limits(while_interactive):
                return limits
        return None

    def identity(self, name: str) -> tuple[str, str] | None:
        """Return the model's own name and a key of its weights; None where the models file does not have the model."""
        target = self.registry.target(name, self.models) or name
        if target not in self._identities or target in self.discovered_models:
            return None
        return target, self._identities[target]

    def is_alias(self, name: str) -> bool:
        """Tell whether `name` stands for a model that has another name here."""
        return self.registry.target(name, self.models) not in (None, name)

    async def start(self) -> None:
        await self.engines.start()

    async def close(self) -> None:
        await self.engines.close()

    async def handle_death(self, death: EngineDead, suspects: Sequence[Suspect]) -> None:
        """Suspend the engine that died, or let `start` build it again."""
        if (engine := self.engines.find_dead(death)) is not None:
            in_flight = [suspect for suspect in suspects if self._target(base_model_of(suspect.model))[1] is engine]
            await self.engines.handle_death(engine, death, in_flight)

    async def answer(self, request: Request) -> Answer:
        if refused := objection(request.url, request.body):
            return refused
        name = str(request.body.get("model"))
        engine = self.engines.find(name)  # nearly always found: a million requests need no other look-up
        if engine is None:
            engine, request = self._find(name, request)
        if engine is None:
            return self._refuse_model(name)
        if request.adapter is not None and (refused := _adapter_refusal(engine, name)):
            return refused
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
            return self._refuse_model(name)
        if request.adapter is not None and (refused := _adapter_refusal(engine, name)):
            return refused
        try:
            return await engine.stream(request, emit)
        except EngineDead as death:
            death.models = engine.models
            raise

    async def length(self, request: Request) -> Length | None:
        """Return the length of a chat or a response; None where the engine cannot tokenise it, and will refuse it.

        Raises:
            EngineBusy: No engine here serves the model now.
        """
        if objection(request.url, request.body):
            return None
        name = str(request.body.get("model"))
        engine, request = self._find(name, request)
        if engine is None:
            self._refuse_model(name)
            return None
        if count := getattr(engine, "length", None):
            counted: Length | None = await count(request)
            return counted
        known = self.registry.resolve(name)
        return Length(estimate(request.url, request.body), known.max_model_len if known else None, exact=False)

    def version_of(self, name: str) -> str:
        """Return the name and version of the engine that has the model `name`; empty where it does not say."""
        engine: object = self._target(name)[1] or self.engines.find(ANY_MODEL)  # which has whole tuned models
        return engine.version if isinstance(engine, AdapterEngine) else ""

    def rename(self, registry: Registry) -> None:
        """Adopt another registry's names and the other facts that may change while a model stays loaded."""
        before = self.registry.models
        same = {
            name
            for name, model in registry.models.items()
            if name in before and loading_of(before[name]) == loading_of(model)
        }
        self._identities = {
            name: self._identities[name] if name in same else identity_of(model)
            for name, model in registry.models.items()
        }
        self.registry = registry

    def _find(self, name: str, request: Request) -> tuple[Engine | None, Request]:
        """Return the engine that serves `name`, and the request with the engine's own name of the model."""
        if request.adapter is not None and request.adapter.whole:
            return self.engines.find(ANY_MODEL), request  # its base may be served by other workers
        target, engine = self._target(name)
        if target not in (None, name):
            request = replace(request, body={**request.body, "model": target})
        return engine, request

    def _target(self, name: str) -> tuple[str | None, Engine | None]:
        target = self.registry.target(name, self.models)
        return target, self._engine_of(target) if target else None

    def _engine_of(self, target: str) -> Engine | None:
        if (engine := self.engines.find(target)) or target in self.registry.models:
            return engine  # or None: the model has a worker of its own, so an endpoint that takes any name is not asked
        return self.engines.find(ANY_MODEL)

    def _refuse_model(self, name: str) -> Answer:
        unsettled = any(not engine.is_settled for engine in self.engines.servers)
        if unsettled or self.registry.resolve(name):
            raise Unserved(f"This worker does not serve the model `{name}` now.", retry_after=1.0)
        return unknown_model(name)


def _adapter_refusal(engine: Engine, name: str) -> Answer | None:
    """Refuse a tuned model whose base has an engine that takes no adapters: it would answer as the base."""
    taken: object = engine
    if isinstance(taken, AdapterEngine) and taken.adapters:
        return None
    return refusal(400, f"The engine of `{name}` serves no tuned models.", code="model_not_supported", param="model")


def loading_of(model: ModelConfig) -> tuple[object, ...]:
    """Return the facts of `model` whose change needs a new process: what is loaded, and how."""
    return model.engine, model.source, model.engine_args


def estimate(url: str, body: Mapping[str, Any]) -> int:
    """Estimate the tokens of a prompt whose tokenizer is elsewhere: rather too many than too few.

    English has four to five bytes a token, code about three, Chinese and Japanese three or fewer bytes for each of
    theirs.
    """
    fields = [body.get(name) for name in _PROMPT.get(url, ())]
    messages = fields[0] if fields and isinstance(fields[0], list) else [None]
    return _A_MESSAGE * (1 + len(messages)) + sum(map(_size, fields)) // BYTES_A_TOKEN


def _size(value: Any) -> int:
    """Return the bytes of a text, or of all names and values in it."""
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if isinstance(value, Mapping):
        return sum(_size(name) + _size(member) for name, member in value.items())
    if isinstance(value, list):
        return sum(map(_size, value))
    return 0 if value is None else len(msgspec.json.encode(value))
