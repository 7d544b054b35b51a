"""The paths that a model is asked at, by clients and in batches: OpenAI's, and `/v1/rerank`."""

from typing import Final

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
EMBEDDINGS: Final = "/v1/embeddings"
RERANK: Final = "/v1/rerank"


def base_of(url: str) -> str:
    """`http://host/v1/` and `http://host` are the same server."""
    return url.strip().rstrip("/").removesuffix("/v1")
