"""How a file is to be cut, as a request says it and as a row keeps it."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from api.http.bodies import Body

#: OpenAI's `auto`.
AUTO: dict[str, Any] = {"type": "static", "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}}
#: Of the distances between sentences: measured, as `workers/retrieval/ingestion/semantic.py` says.
PERCENTILE: Final = 85.0


class Sizes(Body):
    """In tokens of the store's embedding model, which may take fewer: no chunk is longer than it takes."""

    max_chunk_size_tokens: int = Field(ge=100, le=4096)
    chunk_overlap_tokens: int = Field(ge=0)

    @model_validator(mode="after")
    def _half_at_most(self) -> Self:
        if self.chunk_overlap_tokens > self.max_chunk_size_tokens // 2:
            raise ValueError("chunk_overlap_tokens is at most half of max_chunk_size_tokens.")
        return self


class Auto(Body):
    type: Literal["auto"]


class Static(Body):
    type: Literal["static"]
    static: Sizes


class Sentence(Body):
    """Chunks end where a sentence does, where one fits. Ours."""

    type: Literal["sentence"]
    sentence: Sizes


class Meaning(Body):
    """A cut falls where three sentences are further from the next three than `threshold`, a cosine distance, or than
    the `percentile` of all the distances in the document: by default 85."""

    max_chunk_size_tokens: int = Field(ge=100, le=4096)
    percentile: float | None = Field(default=None, ge=1, le=99.9)
    threshold: float | None = Field(default=None, gt=0, le=2)

    @model_validator(mode="after")
    def _one_at_most(self) -> Self:
        if self.percentile is not None and self.threshold is not None:
            raise ValueError("At most one of percentile and threshold.")
        return self


class Semantic(Body):
    """Chunks end where what the text is about changes. Ours. Each sentence is embedded too."""

    type: Literal["semantic"]
    semantic: Meaning


class Structure(Body):
    """Sections, code and tables are kept whole, where they fit. Ours."""

    type: Literal["structure"]
    structure: Sizes


Strategy = Auto | Static | Sentence | Structure | Semantic
ChunkingStrategy = Annotated[Strategy, Field(discriminator="type")]


def kept(strategy: Strategy | None) -> dict[str, Any] | None:
    """As a row keeps it; None where the request does not say."""
    if strategy is None:
        return None
    if isinstance(strategy, Auto):
        return AUTO
    shown = strategy.model_dump(mode="json", exclude_none=True)
    if isinstance(strategy, Semantic) and strategy.semantic.threshold is None:
        shown["semantic"].setdefault("percentile", PERCENTILE)
    return shown
