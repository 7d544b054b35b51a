"""A search of a vector store, on its way from the API to a worker that has the model, and back."""

from typing import Any, Final, Literal

import msgspec

URL: Final = "/v1/vector_stores/search"


def line(queue: str) -> str:
    """Where searches wait: not behind the questions that may be waiting for them."""
    return f"{queue}:search"


class Search(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is asked. Weights are of vectors and of words; `k` is of reciprocal rank fusion."""

    model: str  # whose worker is asked
    store_id: str
    queries: tuple[str, ...]
    limit: int = 10
    filters: dict[str, Any] | None = None
    vector_weight: float = 1.0
    text_weight: float = 1.0
    fusion: Literal["rrf", "relative"] = "rrf"
    k: int = 1  # on 192 RFC abstracts 1 has an MRR@10 of .683, the usual 60 has .663
    threshold: float = 0.0


class Found(msgspec.Struct, frozen=True):
    """A chunk, with the facts of its file."""

    file_id: str
    filename: str
    score: float
    text: str
    attributes: dict[str, Any] | None
    meta: dict[str, Any]


class Results(msgspec.Struct, frozen=True):
    found: tuple[Found, ...]


encode = msgspec.json.encode
decode_search = msgspec.json.Decoder(Search).decode
decode_results = msgspec.json.Decoder(Results).decode
