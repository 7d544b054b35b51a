"""Serve the rate limits of a project: a row for each model that it may use, whether it has limits or not."""

from typing import Annotated, Final, Literal

from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.admin.lists import AdminPage, admin_page
from api.admin.queries import find_active_project, find_project
from api.deps import Admin, AdminContext
from api.errors import clip
from api.http.bodies import Body, resource
from jobs.errors import InvalidRequest, NotFound
from jobs.fleet import routing
from jobs.security.tables import Project
from jobs.usage.rate_limits import NAMES, public_fields, set_limits
from jobs.usage.tables import RateLimit

router = resource("Organization", area="management", admin=True)

#: What OpenAI's API shows where there is no limit, and takes for none.
NO_LIMIT: Final = 1_000_000_000
_PATH = "/organization/projects/{project_id}/rate_limits"
_PREFIX = "rl-"
Limit = Annotated[int | None, Field(ge=0, le=1 << 53)]


class ProjectRateLimit(BaseModel):
    """The limits of a project for a model; 1000000000 stands for none.

    `batch_1_day_max_input_tokens` limits the input tokens of batches that have not ended; the others limit the requests
    of interactive clients.
    """

    id: str
    object: Literal["project.rate_limit"] = "project.rate_limit"
    model: str
    max_requests_per_1_minute: int
    max_tokens_per_1_minute: int
    max_requests_per_1_day: int
    batch_1_day_max_input_tokens: int


class UpdateRateLimit(Body):
    """The limits to change. 0 allows nothing; 1000000000 and more take the limit away."""

    max_requests_per_1_minute: Limit = None
    max_tokens_per_1_minute: Limit = None
    max_requests_per_1_day: Limit = None
    batch_1_day_max_input_tokens: Limit = None


@router.get(_PATH)
def list_project_rate_limits(
    call: Admin,
    project_id: str,
    after: Annotated[str | None, Query(max_length=512)] = None,
    before: Annotated[str | None, Query(max_length=512)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> AdminPage[ProjectRateLimit]:
    """List the limits of a project, by model."""
    with call.db.read() as session:
        models = _models(session, call, find_project(session, project_id))
        rows = {row.model: row for row in session.scalars(select(RateLimit).where(RateLimit.project_id == project_id))}
    if after is not None:
        models = models[_position(models, after, "after") + 1 :]
    if before is not None:
        models = models[: _position(models, before, "before")]
    shown = [_show(model, rows.get(model)) for model in models[:limit]]
    return admin_page(shown, len(models) > limit, lambda row: row)


@router.post(_PATH + "/{rate_limit_id:path}")
def update_project_rate_limit(
    call: Admin, project_id: str, rate_limit_id: str, body: UpdateRateLimit
) -> ProjectRateLimit:
    """Change limits of a project for a model. They hold within 2 seconds."""
    given = {column: getattr(body, name) for column, name in NAMES.items()}
    changes = {column: _limit_or_none(value) for column, value in given.items() if value is not None}
    if not changes:
        raise InvalidRequest("Name at least one limit to change.", code="missing_required_parameter")
    with call.db.write() as session:
        models = _models(session, call, find_active_project(session, project_id, lock=True))
        model = rate_limit_id.removeprefix(_PREFIX)
        if model == rate_limit_id or model not in models:
            message = f"No rate limit found with id '{clip(rate_limit_id)}'."
            raise NotFound(message, param="rate_limit_id", code="rate_limit_not_found")
        row = set_limits(session, project_id, model, changes)
        call.record(session, "rate_limit.update", rate_limit_id, public_fields(changes), project_id=project_id)
        return _show(model, row)


def _models(session: Session, call: AdminContext, project: Project) -> list[str]:
    """Return the models that a project may use, without aliases, by name."""
    return sorted(routing.names_of(session, call.services.registry(), None, project.id))


def _position(models: list[str], rate_limit_id: str, param: str) -> int:
    """Return the position of a cursor. Raises InvalidRequest."""
    try:
        return models.index(rate_limit_id.removeprefix(_PREFIX))
    except ValueError:
        message = f"No rate limit found with id '{clip(rate_limit_id)}'."
        raise InvalidRequest(message, param=param, code="invalid_cursor") from None


def _limit_or_none(value: int) -> int | None:
    return None if value >= NO_LIMIT else value


def _show(model: str, row: RateLimit | None) -> ProjectRateLimit:
    limits = {name: getattr(row, column, None) for column, name in NAMES.items()}
    shown = {name: NO_LIMIT if limit is None else limit for name, limit in limits.items()}
    return ProjectRateLimit(id=f"{_PREFIX}{model}", model=model, **shown)
