"""The tool `file_search` of a response, read and checked; and what else of a response is ours and no engine's."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal

import msgspec

from jobs.errors import InvalidRequest
from jobs.requests.endpoints import RESPONSES
from jobs.retrieval import searches
from jobs.retrieval.filters import check_filter
from jobs.retrieval.searches import Search
from workers.engines.port import Request

TOOL: Final = "file_search"
CALL: Final = "file_search_call"
#: Excerpts unless the tool says how many. OpenAI puts up to 20 before models that can hold them.
MOST_RESULTS: Final = 5
MOST_STORES: Final = 8
MOST_WEIGHT: Final = 1_000_000
MOST_K: Final = 10_000
_LONGEST_QUERY: Final = 4096
_LONGEST_NAME: Final = 255


class Hybrid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    embedding_weight: float = 1.0
    text_weight: float = 1.0
    fusion: Literal["rrf", "relative"] = "rrf"
    rrf_k: int = 1


class Ranking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ranker: str = "auto"
    score_threshold: float = 0.0
    hybrid_search: Hybrid | None = None
    rerank_depth: int = searches.DEPTH
    deduplicate: float | None = None


class Refuse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An answer is refused if less than this share of its words stand in the excerpts."""

    support: float = 0.6


class FileSearch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """OpenAI's tool, with the options that a search of a store takes. `refuse` is ours."""

    vector_store_ids: list[str]
    max_num_results: int | None = None
    filters: dict[str, Any] | None = None
    ranking_options: Ranking | None = None
    refuse: bool | Refuse = False

    @property
    def least_support(self) -> float | None:
        """None: whatever the model says is passed on."""
        if isinstance(self.refuse, bool):
            return Refuse().support if self.refuse else None
        return self.refuse.support

    def search(self, store_id: str, query: str) -> Search:
        """What a worker is asked; the store's model is filled in by whoever knows it."""
        options = self.ranking_options or Ranking()
        hybrid = options.hybrid_search or Hybrid()
        return Search(
            model="",
            store_id=store_id,
            queries=(query,),
            limit=self.max_num_results or MOST_RESULTS,
            filters=self.filters,
            vector_weight=hybrid.embedding_weight,
            text_weight=hybrid.text_weight,
            fusion=hybrid.fusion,
            k=hybrid.rrf_k,
            threshold=options.score_threshold,
            ranker=searches.model_of(options.ranker),
            depth=options.rerank_depth,
            deduplicate=options.deduplicate or 0.0,
        )


def searches_files(request: Request) -> bool:
    tools = request.body.get("tools") if request.url == RESPONSES else None
    return isinstance(tools, list) and any(is_search(tool) for tool in tools)


def is_search(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == TOOL


def tool_of(body: Mapping[str, Any]) -> FileSearch:
    """The tool, checked. Raises ValidationError, InvalidRequest."""
    given, *others = [tool for tool in body["tools"] if is_search(tool)]
    if others:
        raise InvalidRequest("it is given more than once; one names all the vector stores.")
    tool = msgspec.convert({name: value for name, value in given.items() if name != "type"}, FileSearch)
    if not 1 <= len(tool.vector_store_ids) <= MOST_STORES or tool.max_num_results not in (None, *range(1, 51)):
        raise InvalidRequest(f"it names 1 to {MOST_STORES} vector stores, and takes 1 to 50 results.")
    if tool.ranking_options is not None:
        _check_ranking(tool.ranking_options)
    if not 0 <= (tool.least_support or 0.0) <= 1:
        raise InvalidRequest("the support that an answer needs is 0 to 1.")
    if tool.filters is not None:
        check_filter(tool.filters, "filters")
    return tool


def odd_field(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Of the other fields that a search reads or writes: the name of one that is not what it has to be, and that."""
    if not isinstance(body.get("input"), str | list | None):
        return "input", "a text or an array"
    if not isinstance(body.get("instructions"), str | None):
        return "instructions", "a text"
    include = body.get("include")
    if include is not None and not (isinstance(include, list) and all(isinstance(name, str) for name in include)):
        return "include", "an array of texts"
    return None


def _check_ranking(options: Ranking) -> None:
    weights = options.hybrid_search or Hybrid()
    least, most = sorted((weights.embedding_weight, weights.text_weight))
    if not 0 <= least <= most <= MOST_WEIGHT or most == 0:
        raise InvalidRequest(f"weights are 0 to {MOST_WEIGHT}, and at least one of them is above 0.")
    if not 0 <= weights.rrf_k <= MOST_K:
        raise InvalidRequest(f"rrf_k is 0 to {MOST_K}.")
    if not 0 <= options.score_threshold <= 1:
        raise InvalidRequest("score_threshold is 0 to 1.")
    if not 1 <= options.rerank_depth <= searches.MOST_DEPTH:
        raise InvalidRequest(f"rerank_depth is 1 to {searches.MOST_DEPTH}.")
    if options.deduplicate is not None and not 0 < options.deduplicate <= 1:
        raise InvalidRequest("deduplicate is above 0, and at most 1.")
    if not 1 <= len(options.ranker) <= _LONGEST_NAME:
        raise InvalidRequest(f"a ranker's name has 1 to {_LONGEST_NAME} characters.")


def query_of(given: Any) -> str:
    """What the user said last."""
    if isinstance(given, str):
        return given.strip()[:_LONGEST_QUERY]
    said = [item for item in given if isinstance(item, dict) and item.get("role") == "user"] if given else []
    content = said[-1].get("content") if said else ""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [str(part.get("text") or "") for part in parts if isinstance(part, dict)]
    return "\n".join(texts).strip()[:_LONGEST_QUERY]


def understood(request: Request) -> Request:
    """Without what earlier turns had from us: engines know neither calls of the search nor refusals."""
    items = request.body.get("input") if request.url == RESPONSES else None
    if not isinstance(items, list) or not any(map(_is_ours, items)):
        return request
    told = [_told(item) for item in items if not _is_call(item)]
    return replace(request, body={**request.body, "input": told})


def _is_ours(item: Any) -> bool:
    return _is_call(item) or any(map(_is_refusal, _parts(item)))


def _is_call(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == CALL


def _parts(item: Any) -> list[Any]:
    content = item.get("content") if isinstance(item, dict) else None
    return content if isinstance(content, list) else []


def _is_refusal(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "refusal"


def _told(item: Any) -> Any:
    parts = [_said(part) if _is_refusal(part) else part for part in _parts(item)]
    return {**item, "content": parts} if parts else item


def _said(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": str(part.get("refusal") or ""), "annotations": []}
