"""What stands before a worker's engines, and in which order.

    Request ─▶ token ids ─▶ cache ─▶ file search ─▶ compaction ─▶ context window ─▶ JSON schema ─▶ engine

Token ids of OpenAI's become texts before the cache compares them. A hit costs none of the layers behind it. What is
found in files, and what a conversation was compacted to, is fitted into the context with the rest, and what a schema
has asked for once more is of the prompt as it was cut.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jobs.settings import Settings
from workers.engines.port import Engine
from workers.middleware.cache import CacheMiddleware, Identity
from workers.middleware.compaction import CompactionMiddleware
from workers.middleware.context_window import ContextWindow, Measure, ModelRouting
from workers.middleware.file_search import ContextBudgets, FileSearchMiddleware, Searcher
from workers.middleware.json_schema import JsonSchemaMiddleware
from workers.middleware.response_cache import ResponseCache
from workers.middleware.schema_checker import SchemaChecker
from workers.middleware.token_ids import TokenIdMiddleware


@dataclass(frozen=True, slots=True)
class PipelineDeps:
    """What the middleware needs from the worker."""

    measure: Measure
    identity: Identity
    is_alias: Callable[[str], bool]
    model_router: ModelRouting
    search: Searcher
    context_budgets: ContextBudgets
    response_cache: ResponseCache
    checker: SchemaChecker


def build_pipeline(engine: Engine, deps: PipelineDeps, config: Settings) -> TokenIdMiddleware:
    """Return `engine` with all middleware before it."""
    window = ContextWindow(JsonSchemaMiddleware(engine, deps.checker), deps.measure, deps.model_router)
    file_search = FileSearchMiddleware(CompactionMiddleware(window), deps.search, deps.context_budgets)
    cached = CacheMiddleware(file_search, deps.response_cache, deps.identity, config)
    return TokenIdMiddleware(cached, deps.is_alias)
