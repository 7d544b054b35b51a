"""Re-ranking by a server behind HTTP: `/v1/rerank` as vLLM, llama.cpp, Jina and Cohere have it, else TEI's own.

    POST /v1/rerank ── 404, not of OpenAI's shape ──▶ POST /rerank {query, texts, truncate}, 32 texts at a time
                                                               └──▶ [{index, score}, …] ─▶ the common shape

What a server turned out to speak is kept with its endpoint.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from jobs.requests.endpoints import RERANK
from workers.engines.encoders.batching import Unacceptable
from workers.engines.encoders.rerank import Asked, read, write
from workers.engines.endpoints import Endpoint

PATH: Final = "/rerank"
TOGETHER: Final = 32  # texts of one request, unless a server was told otherwise (--max-client-batch-size)
_UNKNOWN_PATH: Final = (404, 405)

Said = tuple[int, str | None, bytes]  # status, Retry-After, body
Post = Callable[[str, bytes], Awaitable[Said]]


class _Score(msgspec.Struct):
    index: int
    score: float


_scores = msgspec.json.Decoder(list[_Score]).decode


async def ask(endpoint: Endpoint, body: Mapping[str, Any], post: Post) -> Said:
    """Raises what `post` raises."""
    if not endpoint.of_tei:
        said = await post(RERANK, msgspec.json.encode(body))
        if said[0] not in _UNKNOWN_PATH or b'"error"' in said[2]:  # it knows the path, and not the model
            return said
    try:
        asked = read(body)
    except Unacceptable as wrong:
        return wrong.answer.status, None, wrong.answer.body
    other = await _by_tei(asked, str(body.get("model")), post)
    if not endpoint.of_tei and other[0] != 200:
        return said if other[0] in _UNKNOWN_PATH else other
    endpoint.of_tei = True
    return other


async def _by_tei(asked: Asked, model: str, post: Post) -> Said:
    scores: list[float] = []
    for start in range(0, len(asked.texts), TOGETHER):
        texts = asked.texts[start : start + TOGETHER]
        said = await post(PATH, msgspec.json.encode({"query": asked.query, "texts": texts, "truncate": True}))
        if said[0] != 200:
            return said
        try:
            found = {one.index: one.score for one in _scores(said[2])}
            scores += [found[n] for n in range(len(texts))]
        except (msgspec.MsgspecError, KeyError):
            return 502, None, b'{"error":{"message":"The endpoint gave no score for some texts."}}'
    return 200, None, write(asked, model, scores, 0).body
