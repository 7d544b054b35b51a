"""Count the tokens of a response's input, and know how many tokens a model takes.

    request ─▶ files searched, where the request asks for it ─▶ measured ─▶ {"input_tokens"}      nothing is generated

The engine of the model counts the whole input, before any of it would be cut. An engine that has no tokenizer of its
own can only estimate, and an estimate is refused.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import Tokenizer

from jobs.fleet.models_file import EngineKind, ModelConfig, Registry
from jobs.inference.context_options import FIELD as CONTEXT
from jobs.inference.interactive import QueuedRequest
from jobs.requests.endpoints import RESPONSES
from jobs.settings import Settings
from workers.engines.caps import objection
from workers.engines.documented import refuse_unknown
from workers.engines.model_folders import ModelUnavailable, source_of
from workers.engines.port import Answer, Emit, Request, refusal
from workers.middleware.base import keep_request
from workers.middleware.cache import FIELD as CACHE
from workers.middleware.compaction import CompactionMiddleware
from workers.middleware.context_window import Measure
from workers.middleware.file_search.excerpts import ContextBudget
from workers.middleware.file_search.middleware import ContextBudgets, FileSearchMiddleware, Searcher
from workers.middleware.file_search.tool import is_search
from workers.middleware.history import History
from workers.runtime.engine_host import EngineHost

_USUAL_CONTEXT: Final = 16_384  # tokens, where the model's own limit is unknown
_FILE: Final = "tokenizer.json"


class ContextLimits:
    """The context length of each model, and its tokenizer where it is on this machine.

    `registry` is called each time, because the models file may change.
    """

    def __init__(self, config: Settings, registry: Callable[[], Registry]) -> None:
        self._config, self._registry = config, registry

    def of(self, name: str) -> ContextBudget:
        """Return the limit of the model `name`. Reads files."""
        model = self._registry().resolve(name)
        if model is None:
            return ContextBudget(_USUAL_CONTEXT)
        tokenizer = self._tokenizer(model)
        return ContextBudget(_context(model, tokenizer), None if tokenizer is None else _read(tokenizer))

    def _tokenizer(self, model: ModelConfig) -> Path | None:
        """Return the path of the tokenizer; download nothing."""
        source = model.source
        if source.urls:
            return None
        if source.repo:
            from huggingface_hub import try_to_load_from_cache

            path = try_to_load_from_cache(source.repo, _FILE, revision=source.revision)
            return Path(path) if isinstance(path, str) else None
        try:
            file = Path(source_of(model, self._config)) / _FILE
        except ModelUnavailable:
            return None
        return file if file.is_file() else None


def _context(model: ModelConfig, tokenizer: Path | None) -> int:
    lengths = [model.engine_args.get("max_model_len"), model.max_model_len, _config_of(tokenizer)]
    return next((number for number in lengths if isinstance(number, int) and number > 0), _USUAL_CONTEXT)


def _config_of(tokenizer: Path | None) -> Any:
    file = tokenizer.with_name("config.json") if tokenizer else None
    return json.loads(file.read_bytes()).get("max_position_embeddings") if file and file.is_file() else None


@lru_cache(maxsize=4)
def _read(file: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


_NOT_COUNTED = frozenset({CACHE, CONTEXT, "personality", "truncation"})  # the model is not shown them


class TokenCounter:
    """Count the tokens of requests, on the engine host's loop."""

    def __init__(
        self,
        host: EngineHost,
        measure: Measure,
        search: Searcher,
        context_budgets: ContextBudgets,
        resolve: Callable[[Request], Awaitable[Request | Answer]] = keep_request,
    ) -> None:
        self._host, self._resolve = host, resolve
        self._engine = FileSearchMiddleware(CompactionMiddleware(_CountingEngine(measure)), search, context_budgets)

    async def answer(self, queued: QueuedRequest, priority: int) -> Answer:
        """Answer a request for a count. Raises what engines raise."""
        body = _countable_body(msgspec.json.decode(queued.body))
        request = Request(RESPONSES, body, queued.id, priority, queued.tenant, cacheable=False)
        resolved = await self._resolve(request)
        if isinstance(resolved, Answer):
            return resolved
        async with self._host.shared_turn():
            return await self._engine.answer(resolved)


class _CountingEngine:
    """An engine that answers with the length of a prompt."""

    models = ()

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def answer(self, request: Request) -> Answer:
        length = await self._measure(request)
        if length is None:
            message = "The model cannot put this input into tokens."
            unsuitable = objection(request.url, request.body) or refuse_unknown(EngineKind.VLLM, request)
            return unsuitable or refusal(400, message, param="input", code="invalid_value")
        if not length.exact:
            message = f"The engine of the model `{str(request.body.get('model'))[:64]}` does not count tokens."
            return refusal(400, message, param="model", code="unsupported_value")
        return Answer(200, msgspec.json.encode({"object": "response.input_tokens", "input_tokens": length.tokens}))

    async def stream(self, request: Request, emit: Emit) -> Answer:  # noqa: ARG002
        return await self.answer(request)


def _countable_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body without the fields that only say what to leave out, or when to refuse."""
    shown = {name: value for name, value in body.items() if name not in _NOT_COUNTED}
    if isinstance(shown.get("tools"), list):
        shown["tools"] = [{**tool, "refuse": False} if is_search(tool) else tool for tool in shown["tools"]]
    history = History.of(RESPONSES, shown)
    return history.body if history else shown
