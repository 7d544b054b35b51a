"""The feed of a project: all its events in one order, in pages or as a resumable stream."""

from typing import Annotated, Any, Literal

from fastapi import Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from api.deps import Call, CallContext
from api.errors import ErrorBody
from api.http.bodies import resource
from api.http.sse import EVENT_STREAM, LastEventId, event_stream, position_of
from api.jobs.schemas import ProjectEvent, show_project_event
from api.jobs.streams import follow_project
from api.shares import open_stream, run_in_threadpool
from jobs.errors import Gone, InvalidRequest
from jobs.ledger import feed

router = resource("Events", area="jobs")

_LATEST = "latest"
_DOC: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page of events, or, with `Accept: text/event-stream`, each as it happens",
        "content": {EVENT_STREAM: {"schema": {}}},
    },
    410: {"model": ErrorBody, "description": "Events that follow `after` have been removed"},
}
Position = Annotated[int, Field(ge=0, lt=1 << 62)]
After = Annotated[
    Position | Literal["latest"] | None,
    Query(
        description="The `position` of the last event known; `latest`: of the last there is. "
        "Without it: from the first event that is there.",
    ),
]


class ProjectEventPage(BaseModel):
    """Events after a position, oldest first."""

    object: Literal["list"] = "list"
    data: list[ProjectEvent]
    last_position: int = Field(description="Go on after this one: it is the last event's, or where an empty page ends.")
    has_more: bool


@router.get("/events", response_model=ProjectEventPage, responses=_DOC)
async def list_events(
    request: Request,
    call: Call,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    last_event_id: LastEventId = None,
) -> Response:
    """List the events of the project, all states of its jobs and all webhook events, as a page or as a stream.

    An event is listed about a second after it happened.
    """
    start = position_of(last_event_id, after)
    first = await run_in_threadpool(_page, call, start, limit)
    if EVENT_STREAM not in request.headers.get("accept", ""):
        return Response(first.model_dump_json(), media_type="application/json")
    open_stream()
    begin = first.data[0].position - 1 if first.data else first.last_position
    return event_stream(follow_project(call, begin), {"Cache-Control": "no-store"})


def _page(call: CallContext, start: int | str | None, limit: int) -> ProjectEventPage:
    """Return the page behind `start`.

    Raises: InvalidRequest for a position that does not exist yet, and Gone.
    """
    with call.db.read() as session:
        ends = feed.bounds(session, call.project_id)
        after = start if isinstance(start, int) else ends.position if start == _LATEST else ends.removed
        rows = feed.after(session, call.project_id, after, limit + 1)
        ends = feed.bounds(session, call.project_id)  # again: events removed meanwhile are not in `rows`
    if after > ends.position:
        message = f"There is no event with position {after} yet; the last one has {ends.position}."
        raise InvalidRequest(message, param="after", code="invalid_cursor")
    if after < ends.removed:
        message = f"Events after position {after} have been removed. Those that are left follow {ends.removed}."
        raise Gone(message, param="after", code="events_removed")
    data = [show_project_event(row) for row in rows[:limit]]
    return ProjectEventPage(data=data, last_position=data[-1].position if data else after, has_more=len(rows) > limit)
