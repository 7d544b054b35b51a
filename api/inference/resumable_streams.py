"""A stream whose client asked to be able to come back to it: the rest of it, and its end."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel

from api.deps import Call
from api.http.resource import resource
from api.inference import response_streams
from api.inference import routes as generation
from api.inference.asking import EVENT_STREAM, LastEventId, kept_stream
from jobs.errors import InvalidRequest
from jobs.inference.waiting import place
from jobs.requests.endpoints import RESPONSES

router: APIRouter = resource("Streams")

_START = "0-0"
StreamId = Annotated[str, Path(pattern="^req_[a-z0-9]{24}$")]


class StreamStopped(BaseModel):
    id: str
    object: Literal["stream"] = "stream"
    stopped: Literal[True] = True


@router.get(
    "/streams/{stream_id}",
    response_class=Response,
    responses={200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}}},
)
async def resume_stream(call: Call, request: Request, stream_id: StreamId, last: LastEventId = None) -> Response:
    """What follows the last event seen, or what is left of the whole."""
    at = last or f"{stream_id}/{_START}"
    if place(at)[0] != stream_id:
        raise InvalidRequest("This is an event of another stream.", param="Last-Event-ID", code="invalid_value")
    kept = await kept_stream(call, stream_id)
    if kept.url == RESPONSES:
        return await response_streams.resumed(call, request, at)
    return await generation.resumed(call, request, at, kept.url)


@router.delete("/streams/{stream_id}")
async def stop_stream(call: Call, stream_id: StreamId) -> StreamStopped:
    """Free the engine at once, and forget what was answered."""
    await kept_stream(call, stream_id)
    await call.services.lines.stop(stream_id, call.project_id)
    return StreamStopped(id=stream_id)
