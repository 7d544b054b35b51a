"""Translate requests for servers with another API: embeddings with prompts, and re-ranking by TEI.

Nightmill's own fields of an embedding are handled here, the others are sent to the server:

prompts in models.yaml     `input_type` is taken out and the prompt stands before each text; token ids are refused
none                       `input_type` is sent, since some servers know it; `raw`, the default, is taken out
`truncate`                 is `truncate_prompt_tokens: -1` there, as vLLM calls it

Re-ranking is `/v1/rerank` as vLLM, llama.cpp, Jina and Cohere have it, else that of text-embeddings-inference (TEI).
The API that a server turned out to have is noted on its endpoint.

    POST /v1/rerank ── 404, not of OpenAI's shape ──▶ POST /rerank {query, texts, truncate}, 32 texts at a time
                                                               └──▶ [{index, score}, …] ─▶ the common shape
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from jobs.requests.embedding_prompts import RAW, Prompts
from jobs.requests.endpoints import RERANK
from workers.engines.encoders.batching import Unacceptable
from workers.engines.encoders.embed import add_prompt, prompt_of
from workers.engines.encoders.rerank import RerankInput, read, write
from workers.engines.http.endpoints import Endpoint
from workers.engines.http.http_client import Reply
from workers.engines.port import Request

PATH: Final = "/rerank"
TEXTS_PER_REQUEST: Final = 32  # texts of one request: TEI's default of --max-client-batch-size
_UNKNOWN_PATH: Final = (404, 405)

Post = Callable[[str, bytes], Awaitable[Reply]]


def for_server(request: Request, prompts: Prompts | None) -> Request:
    """Return an embedding request in the server's API. Raises Unacceptable."""
    body = request.body
    if not prompts and body.get("input_type") != RAW and "truncate" not in body:
        return request
    body = _apply_prompt(body, prompts or Prompts())
    return replace(request, body=_translate_truncate(body))


def _apply_prompt(body: dict[str, Any], prompts: Prompts) -> dict[str, Any]:
    if not prompts and body.get("input_type") != RAW:
        return body
    prompt, inputs = prompt_of(body, prompts), body.get("input")
    rest = {name: value for name, value in body.items() if name != "input_type"}
    if not prompt:
        return rest
    many = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(many, list) or not all(isinstance(text, str) and text for text in many):
        message = (
            "input must be texts that are not empty: this model has a prompt, which cannot stand before token ids."
        )
        raise Unacceptable(message)
    return rest | {"input": add_prompt(many, prompt)}


def _translate_truncate(body: dict[str, Any]) -> dict[str, Any]:
    truncate = body.get("truncate")
    if "truncate" not in body:
        return body
    if not isinstance(truncate, bool | None):
        raise Unacceptable("truncate must be true or false.", param="truncate")
    rest = {name: value for name, value in body.items() if name != "truncate"}
    if truncate:
        return {"truncate_prompt_tokens": -1} | rest
    if truncate is False:
        rest.pop("truncate_prompt_tokens", None)
    return rest


class _Score(msgspec.Struct):
    index: int
    score: float


_scores = msgspec.json.Decoder(list[_Score]).decode


async def rerank(endpoint: Endpoint, body: Mapping[str, Any], post: Post) -> Reply:
    """Ask a server to re-rank; note on `endpoint` when it turned out to be TEI. Raises what `post` raises."""
    if not endpoint.of_tei:
        reply = await post(RERANK, msgspec.json.encode(body))
        if reply[0] not in _UNKNOWN_PATH or b'"error"' in reply[2]:  # the server knows the path, but not the model
            return reply
    try:
        request = read(body)
    except Unacceptable as wrong:
        return wrong.answer.status, None, wrong.answer.body
    other = await _by_tei(request, str(body.get("model")), post)
    if not endpoint.of_tei and other[0] != 200:
        return reply if other[0] in _UNKNOWN_PATH else other
    endpoint.of_tei = True
    return other


async def _by_tei(request: RerankInput, model: str, post: Post) -> Reply:
    scores: list[float] = []
    for start in range(0, len(request.texts), TEXTS_PER_REQUEST):
        texts = request.texts[start : start + TEXTS_PER_REQUEST]
        reply = await post(PATH, msgspec.json.encode({"query": request.query, "texts": texts, "truncate": True}))
        if reply[0] != 200:
            return reply
        try:
            by_index = {entry.index: entry.score for entry in _scores(reply[2])}
            scores += [by_index[n] for n in range(len(texts))]
        except (msgspec.MsgspecError, KeyError):
            return 502, None, b'{"error":{"message":"The endpoint gave no score for some texts."}}'
    return 200, None, write(request, model, scores, 0).body
