"""The middleware before a worker's engines, and its order.

    Request ─▶ tuned models ─▶ media URLs ─▶ token ids ─▶ cache ─▶ file search ─▶ compaction ─┐
                                                        engine ◀─ JSON schema ◀─ context window ◀─┘

The name of a tuned model becomes that of its base, with an adapter. URLs of pictures and files become their bytes, and
OpenAI's token ids texts, before the cache compares them. A cache hit skips everything behind it. Excerpts of files and
summaries of a conversation count in the context window like the rest. The JSON Schema's second request has the
shortened prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jobs.settings import Settings
from workers.engines.port import Engine
from workers.middleware.cache import CacheMiddleware, Identity
from workers.middleware.compaction import CompactionMiddleware
from workers.middleware.context_window import ContextWindow, Measure, ModelRouting
from workers.middleware.file_search.middleware import ContextBudgets, FileSearchMiddleware, Searcher
from workers.middleware.json_schema import JsonSchemaMiddleware
from workers.middleware.media_urls import MediaUrlMiddleware, Permission
from workers.middleware.response_cache import ResponseCache
from workers.middleware.schema_checker import SchemaChecker
from workers.middleware.token_ids import TokenIdMiddleware
from workers.middleware.tuned_models import TunedModelMiddleware, TunedModels


@dataclass(frozen=True, slots=True)
class PipelineDeps:
    """The parts of the worker that the middleware needs."""

    measure: Measure
    identity: Identity
    is_alias: Callable[[str], bool]
    model_router: ModelRouting
    search: Searcher
    context_budgets: ContextBudgets
    response_cache: ResponseCache
    tuned_models: TunedModels
    checker: SchemaChecker
    allows_media_urls: Permission


def build_pipeline(engine: Engine, deps: PipelineDeps, config: Settings) -> TunedModelMiddleware:
    """Return `engine` with all middleware before it."""
    tuned_models = deps.tuned_models
    checked = JsonSchemaMiddleware(engine, deps.checker)
    window = ContextWindow(checked, deps.measure, deps.model_router, tuned_models.ask)
    file_search = FileSearchMiddleware(CompactionMiddleware(window), deps.search, deps.context_budgets)
    cached = CacheMiddleware(file_search, deps.response_cache, deps.identity, config)
    with_media = MediaUrlMiddleware(TokenIdMiddleware(cached, deps.is_alias), deps.allows_media_urls, config)
    return TunedModelMiddleware(with_media, tuned_models)
