"""A search of a vector store, on its way from the API to a worker that has the model, and back."""

from typing import Any, Final, Literal, Protocol

import msgspec

URL: Final = "/v1/vector_stores/search"
#: Where a search asks another queue's worker for the scores of what it found.
RERANK_URL: Final = "/v1/vector_stores/rerank"
#: OpenAI's rankers. They are the same here: the order that both rankings give. Any other names a re-ranking model.
RANKERS: Final = ("none", "auto", "default-2024-11-15", "default_2024_08_21")
DEPTH: Final = 50  # candidates that are re-ranked
MOST_DEPTH: Final = 200


def search_queue(queue: str) -> str:
    """Return the queue of searches, apart from the requests that may be waiting for them."""
    return f"{queue}:search"


def rerank_queue(queue: str) -> str:
    """Return the queue of texts to be re-ranked, apart from the searches that may be waiting for it."""
    return f"{queue}:rerank"


def model_of(ranker: str) -> str:
    """Return the model that a ranker names; empty for OpenAI's rankers."""
    return "" if ranker in RANKERS else ranker


class Hybrid(Protocol):
    """Weights and a fusion as a client gives them."""

    @property
    def embedding_weight(self) -> float: ...

    @property
    def text_weight(self) -> float: ...

    @property
    def fusion(self) -> str: ...

    @property
    def rrf_k(self) -> int: ...


def fusion_of(hybrid: Hybrid | None) -> dict[str, Any]:
    """Return the fields of a `Search` that `hybrid` stands for; none where the client gives nothing."""
    if hybrid is None:
        return {}
    return {
        "vector_weight": hybrid.embedding_weight,
        "text_weight": hybrid.text_weight,
        "fusion": hybrid.fusion,
        "k": hybrid.rrf_k,
    }


class Search(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request. Weights are of vectors and of words; `k` is of reciprocal rank fusion. Unless it is `kept`, nothing
    goes into the cache.

    The defaults of weights and fusion are chosen by measurement (docs/guides/ranking.md).
    """

    model: str  # whose worker is asked
    store_id: str
    queries: tuple[str, ...]
    limit: int = 10
    filters: dict[str, Any] | None = None
    vector_weight: float = 1.0
    text_weight: float = 0.3
    fusion: Literal["rrf", "relative"] = "relative"
    k: int = 1  # on 192 RFC abstracts 1 has an MRR@10 of .683, the usual 60 has .663
    threshold: float = 0.0  # of the score by which they are ranked in the end
    ranker: str = ""  # a model that re-ranks the best `depth`
    depth: int = DEPTH
    deduplicate: float = 0.0  # what resembles a better one this much is left out; 0: nothing is
    cacheable: bool = True

    @property
    def candidates(self) -> int:
        """Return how many of the best are looked at."""
        if self.ranker:
            return max(self.limit, self.depth)
        return self.limit * 4 if self.deduplicate else self.limit


class Found(msgspec.Struct, frozen=True):
    """A chunk, with the facts of its file."""

    file_id: str
    filename: str
    score: float
    text: str
    attributes: dict[str, Any] | None
    meta: dict[str, Any]
    n: int = 0  # which of its file's chunks


class Results(msgspec.Struct, frozen=True):
    """`duplicates` counts hits that were dropped for resembling a better one; None where none were looked for."""

    found: tuple[Found, ...]
    duplicates: int | None = None


encode = msgspec.json.encode
decode_search = msgspec.json.Decoder(Search).decode
decode_results = msgspec.json.Decoder(Results).decode
