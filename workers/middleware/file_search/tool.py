"""The tool `file_search`, read and checked, and the other items of a request that engines do not know."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from jobs.errors import InvalidRequest
from jobs.requests.endpoints import RESPONSES
from jobs.retrieval import searches
from jobs.retrieval.filters import check_filter
from jobs.retrieval.searches import Search
from workers.engines.port import Request

TOOL: Final = "file_search"
CALL: Final = "file_search_call"
#: The default number of excerpts. OpenAI uses up to 20, for models with a long context.
DEFAULT_RESULTS: Final = 5
MAX_STORES: Final = 8
_RESULTS: Final = (None, *range(1, searches.MAX_RESULTS + 1))


class HybridOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    embedding_weight: float = 1.0
    text_weight: float = 1.0
    fusion: searches.Fusion = "rrf"
    rrf_k: int = 1


class SearchRanking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ranker: str = "auto"
    score_threshold: float = 0.0
    hybrid_search: HybridOptions | None = None
    rerank_depth: int = searches.DEPTH
    deduplicate: float | None = None


class RefusalOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Refuse an answer if less than this share of its words occurs in the excerpts."""

    support: float = 0.6


class FileSearch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """OpenAI's tool with the options of a store's search, and `refuse`, which OpenAI does not have."""

    vector_store_ids: list[str]
    max_num_results: int | None = None
    filters: dict[str, Any] | None = None
    ranking_options: SearchRanking | None = None
    refuse: bool | RefusalOptions = False

    @property
    def min_support(self) -> float | None:
        """Return the share of an answer's words that the excerpts must contain; None if no answer is refused."""
        if isinstance(self.refuse, bool):
            return RefusalOptions().support if self.refuse else None
        return self.refuse.support

    def search(self, store_id: str, query: str) -> Search:
        """Return the search of one store. The worker that serves it fills in the store's model."""
        return Search(
            model="",
            store_id=store_id,
            queries=(query,),
            limit=self.max_num_results or DEFAULT_RESULTS,
            filters=self.filters,
            **searches.ranking_of(self.ranking_options),
        )


def uses_file_search(request: Request) -> bool:
    tools = request.body.get("tools") if request.url == RESPONSES else None
    return isinstance(tools, list) and any(is_search(tool) for tool in tools)


def is_search(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == TOOL


def tool_of(body: Mapping[str, Any]) -> FileSearch:
    """Return the tool of a body, checked.

    Raises: ValidationError, InvalidRequest.
    """
    given, *others = [tool for tool in body["tools"] if is_search(tool)]
    if others:
        raise InvalidRequest("it is given more than once; one names all the vector stores.")
    tool = msgspec.convert(_drop_nulls({name: value for name, value in given.items() if name != "type"}), FileSearch)
    if not 1 <= len(tool.vector_store_ids) <= MAX_STORES or tool.max_num_results not in _RESULTS:
        limits = f"1 to {MAX_STORES} vector stores, and takes 1 to {searches.MAX_RESULTS} results"
        raise InvalidRequest(f"it names {limits}.")
    if tool.ranking_options is not None:
        _check_ranking(tool.ranking_options)
    if not 0 <= (tool.min_support or 0.0) <= 1:
        raise InvalidRequest("the support that an answer needs is 0 to 1.")
    if tool.filters is not None:
        check_filter(tool.filters, "filters")
    return tool


def _drop_nulls(options: Mapping[str, Any], depth: int = 2) -> dict[str, Any]:
    """Return the options without nulls, which stand for defaults, down to the depth at which options are nested."""
    return {
        name: _drop_nulls(value, depth - 1) if depth and isinstance(value, dict) and name != "filters" else value
        for name, value in options.items()
        if value is not None
    }


def find_type_fault(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first of the other fields of a search that has a wrong type, and the right type; None if all fit."""
    if not isinstance(body.get("input"), str | list | None):
        return "input", "a text or an array"
    if not isinstance(body.get("instructions"), str | None):
        return "instructions", "a text"
    include = body.get("include")
    if include is not None and not (isinstance(include, list) and all(isinstance(name, str) for name in include)):
        return "include", "an array of texts"
    return None


def _check_ranking(options: SearchRanking) -> None:
    weights = options.hybrid_search or HybridOptions()
    smaller, larger = sorted((weights.embedding_weight, weights.text_weight))
    if not 0 <= smaller <= larger <= searches.MAX_WEIGHT or larger == 0:
        raise InvalidRequest(f"weights are 0 to {searches.MAX_WEIGHT}, and at least one of them is above 0.")
    if not 0 <= weights.rrf_k <= searches.MAX_RRF_K:
        raise InvalidRequest(f"rrf_k is 0 to {searches.MAX_RRF_K}.")
    if not 0 <= options.score_threshold <= 1:
        raise InvalidRequest("score_threshold is 0 to 1.")
    if not 1 <= options.rerank_depth <= searches.MAX_DEPTH:
        raise InvalidRequest(f"rerank_depth is 1 to {searches.MAX_DEPTH}.")
    if options.deduplicate is not None and not 0 < options.deduplicate <= 1:
        raise InvalidRequest("deduplicate is above 0, and at most 1.")
    if not 1 <= len(options.ranker) <= searches.MAX_RANKER_NAME:
        raise InvalidRequest(f"a ranker's name has 1 to {searches.MAX_RANKER_NAME} characters.")


def query_of(given: Any) -> str:
    """Return the user's last message."""
    if isinstance(given, str):
        return given.strip()[: searches.MAX_QUERY]
    messages = [item for item in given if isinstance(item, dict) and item.get("role") == "user"] if given else []
    content = messages[-1].get("content") if messages else ""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [str(part.get("text") or "") for part in parts if isinstance(part, dict)]
    return "\n".join(texts).strip()[: searches.MAX_QUERY]


def for_engine(request: Request) -> Request:
    """Return the request without search calls and refusals of earlier turns, which engines do not know."""
    items = request.body.get("input") if request.url == RESPONSES else None
    if not isinstance(items, list) or not any(map(_is_added_by_search, items)):
        return request
    items_for_engine = [_item_for_engine(item) for item in items if not _is_call(item)]
    return replace(request, body={**request.body, "input": items_for_engine})


def _is_added_by_search(item: Any) -> bool:
    return _is_call(item) or any(map(_is_refusal, _parts(item)))


def _is_call(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == CALL


def _parts(item: Any) -> list[Any]:
    content = item.get("content") if isinstance(item, dict) else None
    return content if isinstance(content, list) else []


def _is_refusal(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "refusal"


def _item_for_engine(item: Any) -> Any:
    parts = [_text_part(part) if _is_refusal(part) else part for part in _parts(item)]
    return {**item, "content": parts} if parts else item


def _text_part(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": str(part.get("refusal") or ""), "annotations": []}
