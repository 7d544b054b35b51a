"""The paths of model requests, for clients and in batches: OpenAI's, and `/v1/rerank`."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
EMBEDDINGS: Final = "/v1/embeddings"
RERANK: Final = "/v1/rerank"
FINE_TUNING: Final = "/v1/fine_tuning/jobs"

# What evaluations ask of workers and their own engines. No client can ask at these paths, and no other server is asked.
SEARCH: Final = "/v1/vector_stores/search"
LIKELIHOOD: Final = "/v1/likelihood"
BERTSCORE: Final = "/v1/bertscore"
#: The endpoint that the model of each of these requests serves.
SERVED_WITH: Final[Mapping[str, str]] = {SEARCH: EMBEDDINGS, LIKELIHOOD: COMPLETIONS, BERTSCORE: EMBEDDINGS}


def base_of(url: str) -> str:
    """Return the base URL of a server: `http://host/v1/` and `http://host` are the same one."""
    return url.strip().rstrip("/").removesuffix("/v1")


def validate_server_url(url: str, *, key: str) -> str:
    """Return a server's URL unchanged, if it is valid. Raises: ValueError.

    `key` says where the server's key belongs, because URLs are shown and logged.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be an http or https URL with a host")
    if parts.username or parts.password:
        raise ValueError(f"must carry no user name or password: {key}")
    return url
