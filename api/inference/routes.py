"""Answer interactive clients: chat completions, completions, embeddings and rankings, whole or as a stream.

The body goes to the engine unchanged, and the engine refuses errors in OpenAI's shape, except for Nightmill's own
fields (`context`). These requests are served before batches, on the same engine.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel

from api.deps import Call, CallContext
from api.http.bodies import Many, resource
from api.http.idempotency import Idempotent
from api.http.sse import EVENT_STREAM
from api.inference import chat_completions, response_streams
from api.inference.chat_completions import Chat, ChatCompletionRequest
from api.inference.interactive import (
    JSON_BODY,
    JSON_OR_STREAM,
    Events,
    InferenceRequest,
    LastEventId,
    Resume,
    find_stream,
    plain_response,
    resume,
    stream_response,
    submit,
)
from api.inference.prompts import resolve_prompt
from api.inference.targets import rules_of_project
from api.shares import run_in_threadpool
from jobs.errors import InvalidRequest
from jobs.inference import cache
from jobs.inference.client import parse_position
from jobs.inference.context_options import context_options_of
from jobs.requests.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, RESPONSES

router: APIRouter = resource("Generation", area="model")
rerank_router: APIRouter = resource("Generation", area="rerank")


class CompletionRequest(InferenceRequest):
    stream: bool | None = None
    prompt: str | list[Any]


class EmbeddingRequest(InferenceRequest):
    """OpenAI's fields, and the kind of the inputs (`query`, `passage` …), and whether long ones are cut off."""

    input: str | list[Any]
    input_type: Any = None
    truncate: Any = None
    truncate_prompt_tokens: Any = None


class RerankRequest(InferenceRequest):
    query: str
    documents: Many[str | dict[str, Any]]


@router.post("/chat/completions", response_class=Response, responses=JSON_OR_STREAM)
async def create_chat_completion(
    call: Call,
    request: Request,
    once: Idempotent,
    body: ChatCompletionRequest,
    seconds: Resume = None,
    last: LastEventId = None,
) -> Response:
    """Create a chat completion; with `stream` its chunks are server-sent events; with `store` it is stored."""
    if last is not None:
        return await resume_events(call, request, last, CHAT)
    sent = body.fields()
    if body.prompt is None:
        body, prompt = resolve_prompt(call, CHAT, body)
    else:
        body, prompt = await run_in_threadpool(resolve_prompt, call, CHAT, body)
    if body.store and (await rules_of_project(call)).keeps_nothing:
        body = body.model_copy(update={"store": False})
    if body.store:
        return await chat_completions.answer(Chat(call, body, prompt), request, once, sent, seconds)
    public = prompt.public if prompt else None
    return await _answer(call, request, CHAT, body, stream=bool(body.stream), seconds=seconds, prompt=public)


@router.post("/completions", response_class=Response, responses=JSON_OR_STREAM)
async def create_completion(
    call: Call, request: Request, body: CompletionRequest, seconds: Resume = None, last: LastEventId = None
) -> Response:
    """Create a completion; with `stream` its chunks are server-sent events."""
    if last is not None:
        return await resume_events(call, request, last, COMPLETIONS)
    return await _answer(call, request, COMPLETIONS, body, stream=bool(body.stream), seconds=seconds)


@router.post("/embeddings", response_class=Response, responses=JSON_BODY)
async def create_embedding(call: Call, request: Request, body: EmbeddingRequest) -> Response:
    """Embed one or more inputs."""
    return await _answer(call, request, EMBEDDINGS, body, stream=False)


@rerank_router.post("/rerank", response_class=Response, responses=JSON_BODY)
async def create_rerank(call: Call, request: Request, body: RerankRequest) -> Response:
    """Score how well each document answers the query, best first: the shape that vLLM, Jina and Cohere share."""
    return await _answer(call, request, RERANK, body, stream=False)


async def resume_events(call: CallContext, request: Request, last: str, url: str) -> Response:
    """Return the events after one that the client has seen. Raises InvalidRequest, NotFound, StreamsUnavailable."""
    resumable = await find_stream(call, parse_position(last)[0])
    if resumable.url == url and resumable.shown:
        return await chat_completions.resume_events(call, request, last, resumable.shown)
    _, entries = await resume(call, request, last, url)
    return stream_response(Events(resumable=True).of(entries), last)


async def _answer(
    call: CallContext,
    request: Request,
    url: str,
    body: InferenceRequest,
    *,
    stream: bool,
    seconds: int | None = None,
    prompt: Mapping[str, Any] | None = None,
) -> Response:
    fields = body.fields()
    context_options_of(url, fields)  # refused before a worker is looked for
    first, entries = await submit(call, request, url, fields, stream=stream, resume=seconds, prompt=prompt)
    if first.kind == "end" and first.body:
        await entries.aclose()
        return plain_response(first)
    return stream_response(Events(resumable=bool(seconds)).of(entries, first), first.position)


stream_router: APIRouter = resource("Streams", area="model")

_START = "0-0"
StreamId = Annotated[str, Path(pattern="^req_[a-z0-9]{24}$")]


class StreamStopped(BaseModel):
    id: str
    object: Literal["stream"] = "stream"
    stopped: Literal[True] = True


@stream_router.get(
    "/streams/{stream_id}",
    response_class=Response,
    responses={200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}}},
)
async def resume_stream(call: Call, request: Request, stream_id: StreamId, last: LastEventId = None) -> Response:
    """Return the events after the last one seen, or all that are left."""
    at = last or f"{stream_id}/{_START}"
    if parse_position(at)[0] != stream_id:
        raise InvalidRequest("This is an event of another stream.", param="Last-Event-ID", code="invalid_value")
    resumable = await find_stream(call, stream_id)
    if resumable.url == RESPONSES:
        return await response_streams.resume_events(call, request, at)
    return await resume_events(call, request, at, resumable.url)


@stream_router.delete("/streams/{stream_id}")
async def stop_stream(call: Call, stream_id: StreamId) -> StreamStopped:
    """Stop a stream: the engine is free at once, and the answer is dropped."""
    await find_stream(call, stream_id)
    await call.services.inference.stop(stream_id, call.project_id)
    return StreamStopped(id=stream_id)


cache_router = resource("Cache", area="model")


class CacheDeleted(BaseModel):
    """The result of clearing the cache. `entries` is the number of entries until then."""

    object: Literal["cache.deleted"] = "cache.deleted"
    deleted: bool = True
    entries: int


@cache_router.delete("/cache")
def delete_cache(call: Call) -> CacheDeleted:
    """Clear the project's cache. Its entries cannot be found any more; their bytes are removed later."""
    with call.db.write() as session:
        entries = cache.clear(session, call.project_id)
        call.record(session, "cache.delete", call.project_id, {"entries": entries})
    return CacheDeleted(entries=entries)
