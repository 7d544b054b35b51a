"""POST /v1/rerank on the wire, in the shape that vLLM, Jina and Cohere share.

    {model, query, documents, top_n?, return_documents?}
        ─▶ {id, model, results: [{index, relevance_score, document?}], usage}

Best first. `documents` are texts or `{"text": …}`; with `return_documents`, which is the default as with Jina and vLLM,
each result has its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from jobs.ids import new_id
from workers.engines.batching import Unacceptable
from workers.engines.port import Answer, Usage

MOST_DOCUMENTS: Final = 1000  # Cohere's limit
DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is well formed."""

    query: str
    texts: list[str]
    most: int
    returned: bool


def read(body: Mapping[str, Any]) -> Asked:
    """Raises Unacceptable."""
    query = body.get("query")
    if not isinstance(query, str) or not query.strip():
        raise Unacceptable("query must be a text that is not empty.", param="query")
    texts, returned = _texts(body.get("documents")), body.get("return_documents")
    if not isinstance(returned, bool | None):
        raise Unacceptable("return_documents must be true or false.", param="return_documents")
    return Asked(query, texts, _most(body.get("top_n"), len(texts)), returned is not False)


def _texts(documents: Any) -> list[str]:
    if not isinstance(documents, list) or not 1 <= len(documents) <= MOST_DOCUMENTS:
        raise Unacceptable(f"documents must be an array of 1 to {MOST_DOCUMENTS} texts.", param="documents")
    return [_text(one, n) for n, one in enumerate(documents)]


def _text(document: Any, n: int) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise Unacceptable("a document is a text, or an object with a text.", param=f"documents[{n}]")
    return text


def _most(top_n: Any, count: int) -> int:
    if top_n is None:
        return count
    if isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1:
        raise Unacceptable("top_n must be an integer of at least 1.", param="top_n")
    return min(top_n, count)


def write(asked: Asked, model: str, scores: Sequence[float], tokens: int) -> Answer:
    best = sorted(enumerate(scores), key=lambda pair: (-pair[1], pair[0]))[: asked.most]
    results = [_result(asked, index, score) for index, score in best]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"id": new_id("rerank-"), "model": model, "results": results, "usage": usage}
    return Answer(200, msgspec.json.encode(body), Usage(tokens))


def _result(asked: Asked, index: int, score: float) -> dict[str, Any]:
    document = {"document": {"text": asked.texts[index]}} if asked.returned else {}
    return {"index": index, "relevance_score": round(score, DIGITS), **document}
