"""How a file is to be cut, as a request says it and as a row keeps it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from api.bodies import Body

#: OpenAI's `auto`.
AUTO: dict[str, Any] = {"type": "static", "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}}


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


class Structure(Body):
    """Sections, code and tables are kept whole, where they fit. Ours."""

    type: Literal["structure"]
    structure: Sizes


ChunkingStrategy = Annotated[Auto | Static | Sentence | Structure, Field(discriminator="type")]


def kept(strategy: Auto | Static | Sentence | Structure | None) -> dict[str, Any] | None:
    """As a row keeps it; None where the request does not say."""
    if strategy is None:
        return None
    return AUTO if isinstance(strategy, Auto) else strategy.model_dump(mode="json")
