"""The messages of a vector store search between the API and a worker that has the embedding model."""

from typing import Any, Final, Literal, Protocol

import msgspec

from jobs.requests.endpoints import SEARCH

URL: Final = SEARCH
#: The URL under which a search asks another queue's worker for scores.
RERANK_URL: Final = "/v1/vector_stores/rerank"
#: OpenAI's rankers, which are all the same here: the fused ranking. Any other name is a re-ranking model.
RANKERS: Final = ("none", "auto", "default-2024-11-15", "default_2024_08_21")
MAX_QUERY: Final = 4096  # characters
DEFAULT_LIMIT: Final = 10  # results
DEPTH: Final = 50  # candidates that are re-ranked
MAX_DEPTH: Final = 200
MAX_RESULTS: Final = 50
MAX_WEIGHT: Final = 1_000_000  # of a ranking
MAX_RRF_K: Final = 10_000
MAX_RANKER_NAME: Final = 255  # characters

Fusion = Literal["rrf", "relative"]


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


class SearchRanking(Protocol):
    """The options of ranking as a client gives them."""

    @property
    def ranker(self) -> str: ...

    @property
    def score_threshold(self) -> float: ...

    @property
    def hybrid_search(self) -> Hybrid | None: ...

    @property
    def rerank_depth(self) -> int: ...

    @property
    def deduplicate(self) -> float | None: ...


def ranking_of(options: SearchRanking | None) -> dict[str, Any]:
    """Return the fields of a `Search` for the options of a client; none where the client gives none."""
    if options is None:
        return {}
    fields = {
        "threshold": options.score_threshold,
        "ranker": model_of(options.ranker),
        "depth": options.rerank_depth,
        "deduplicate": options.deduplicate or 0.0,
    }
    if (hybrid := options.hybrid_search) is None:
        return fields
    weights = {"vector_weight": hybrid.embedding_weight, "text_weight": hybrid.text_weight}
    return {**fields, **weights, "fusion": hybrid.fusion, "k": hybrid.rrf_k}


class Search(msgspec.Struct, frozen=True, omit_defaults=True):
    """A search request. Weights are for vectors and for words; `k` is the constant of reciprocal rank fusion.

    The query's vector is cached only if `cacheable`. The defaults of weights and fusion were chosen by measurement
    (docs/guides/ranking.md).
    """

    model: str  # the store's embedding model
    store_id: str
    queries: tuple[str, ...]
    limit: int = DEFAULT_LIMIT
    filters: dict[str, Any] | None = None
    vector_weight: float = 1.0
    text_weight: float = 0.3
    fusion: Fusion = "relative"
    k: int = 1  # on 192 RFC abstracts 1 has an MRR@10 of .683, the usual 60 has .663
    threshold: float = 0.0  # of the final score
    ranker: str = ""  # a model that re-ranks the best `depth`
    depth: int = DEPTH
    deduplicate: float = 0.0  # similarity from which a worse chunk is dropped; 0: none is
    cacheable: bool = True

    @property
    def candidates(self) -> int:
        """Return how many of the best chunks are considered."""
        if self.ranker:
            return max(self.limit, self.depth)
        return self.limit * 4 if self.deduplicate else self.limit


class Scores(msgspec.Struct, frozen=True):
    """The parts of a chunk's score; None from a ranking that has not found the chunk, or that was not made.

    `vectors` is the cosine with the query, `words` the BM25 score of the vector database. `fused`, a share of the best
    that is possible in this search, is made of both and orders the chunks. `reranked` is the score of a model.
    """

    vectors: float | None = None
    words: float | None = None
    fused: float | None = None
    reranked: float | None = None


class FoundChunk(msgspec.Struct, frozen=True):
    """A chunk with facts about its file."""

    file_id: str
    filename: str
    score: float
    text: str
    attributes: dict[str, Any] | None
    meta: dict[str, Any]
    n: int = 0  # the number of the chunk in its file
    scores: Scores = Scores()


class SearchResults(msgspec.Struct, frozen=True):
    """The chunks that were found. `duplicates` counts the dropped similar ones; None if none were looked for."""

    chunks: tuple[FoundChunk, ...]
    duplicates: int | None = None


encode = msgspec.json.encode
decode_search = msgspec.json.Decoder(Search).decode
decode_results = msgspec.json.Decoder(SearchResults).decode
