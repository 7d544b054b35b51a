"""Serve the settings of a project: its hosted tools, its service tiers, and what is kept of its requests."""

from typing import Annotated, Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api.admin.queries import find_active_project, find_project
from api.deps import Admin
from api.http.bodies import Body, Many, resource
from jobs.errors import InvalidRequest
from jobs.security.project_rules import (
    ALL_TIERS,
    FILE_SEARCH,
    HOSTED_TOOLS,
    ORGANIZATION_DEFAULT,
    STANDARD,
    TIERS,
    organization_retention,
    set_organization_retention,
)
from jobs.security.tables import Project

router: APIRouter = resource("Organization", area="management", admin=True)

_PROJECT: Final = "/organization/projects/{project_id}"


class ToolPermission(Body):
    enabled: bool


class HostedTools(BaseModel):
    """The hosted tools that a project's requests may use."""

    file_search: ToolPermission
    web_search: ToolPermission
    image_generation: ToolPermission
    mcp: ToolPermission
    code_interpreter: ToolPermission


class UpdateHostedTools(Body):
    """The tools to change. This deployment has file search; the others cannot be enabled."""

    file_search: ToolPermission | None = None
    web_search: ToolPermission | None = None
    image_generation: ToolPermission | None = None
    mcp: ToolPermission | None = None
    code_interpreter: ToolPermission | None = None


@router.get(_PROJECT + "/hosted_tool_permissions")
def retrieve_hosted_tool_permissions(call: Admin, project_id: str) -> HostedTools:
    """Return which hosted tools a project's requests may use."""
    with call.db.read() as session:
        return _show_tools(find_project(session, project_id))


@router.post(_PROJECT + "/hosted_tool_permissions")
def update_hosted_tool_permissions(call: Admin, project_id: str, body: UpdateHostedTools) -> HostedTools:
    """Set which hosted tools a project's requests may use."""
    given: dict[str, ToolPermission | None] = {name: getattr(body, name) for name in HOSTED_TOOLS}
    changes = {name: permission.enabled for name, permission in given.items() if permission is not None}
    for name, enabled in changes.items():
        if enabled and name != FILE_SEARCH:
            message = f"This deployment has no hosted tool '{name}'."
            raise InvalidRequest(message, param=name, code="unsupported_value")
    with call.db.write() as session:
        project = find_active_project(session, project_id, lock=True)
        if FILE_SEARCH in changes:
            project.hosted_tools = {FILE_SEARCH: changes[FILE_SEARCH]}
        call.record(session, "hosted_tools.update", project_id, dict(changes), project_id=project_id)
        return _show_tools(project)


def _show_tools(project: Project) -> HostedTools:
    enabled = {name: name == FILE_SEARCH for name in HOSTED_TOOLS} | (project.hosted_tools or {})
    return HostedTools(**{name: ToolPermission(enabled=is_on) for name, is_on in enabled.items()})


OptionalTier = Literal["flex", "fast"]


class TierSettings(BaseModel):
    """The service tiers of a project. `default` runs the requests that name none."""

    object: Literal["project.service_tier_settings"] = "project.service_tier_settings"
    default: Literal["standard", "fast"]
    enabled_tiers: Literal["all"] | list[OptionalTier]


class UpdateTierSettings(Body):
    default: Literal["standard", "fast"] | None = None
    enabled_tiers: Literal["all"] | Annotated[Many[OptionalTier], Field(max_length=len(TIERS))] | None = None


@router.get(_PROJECT + "/service_tier_settings")
def retrieve_service_tier_settings(call: Admin, project_id: str) -> TierSettings:
    """Return which service tiers a project's requests may name."""
    with call.db.read() as session:
        return _show_tiers(find_project(session, project_id))


@router.post(_PROJECT + "/service_tier_settings")
def update_service_tier_settings(call: Admin, project_id: str, body: UpdateTierSettings) -> TierSettings:
    """Set which service tiers a project's requests may name. The default tier has to be one of them."""
    if body.default is None and body.enabled_tiers is None:
        raise InvalidRequest("Name 'default' or 'enabled_tiers'.", code="missing_required_parameter")
    with call.db.write() as session:
        project = find_active_project(session, project_id, lock=True)
        current = _show_tiers(project)
        default = body.default or current.default
        enabled = current.enabled_tiers if body.enabled_tiers is None else body.enabled_tiers
        if default not in (STANDARD, *(TIERS if enabled == ALL_TIERS else enabled)):
            message = f"Invalid 'default': the tier '{default}' is not one of 'enabled_tiers'."
            raise InvalidRequest(message, param="default", code="invalid_value")
        project.service_tiers = {"default": default, "enabled": enabled}
        call.record(session, "service_tiers.update", project_id, project.service_tiers, project_id=project_id)
        return _show_tiers(project)


def _show_tiers(project: Project) -> TierSettings:
    setting = project.service_tiers or {"default": STANDARD, "enabled": []}
    return TierSettings(default=setting["default"], enabled_tiers=setting["enabled"])


class ProjectRetention(BaseModel):
    object: Literal["project.data_retention"] = "project.data_retention"
    type: str


class OrganizationRetention(BaseModel):
    object: Literal["organization.data_retention"] = "organization.data_retention"
    type: str


class UpdateProjectRetention(Body):
    retention_type: Literal["organization_default", "none", "zero_data_retention"]


class UpdateOrganizationRetention(Body):
    retention_type: Literal["none", "zero_data_retention"]


@router.get(_PROJECT + "/data_retention")
def retrieve_project_data_retention(call: Admin, project_id: str) -> ProjectRetention:
    """Return what is kept of a project's requests."""
    with call.db.read() as session:
        return ProjectRetention(type=find_project(session, project_id).retention or ORGANIZATION_DEFAULT)


@router.post(_PROJECT + "/data_retention")
def update_project_data_retention(call: Admin, project_id: str, body: UpdateProjectRetention) -> ProjectRetention:
    """Set what is kept of a project's requests from now on."""
    retention = body.retention_type
    with call.db.write() as session:
        project = find_active_project(session, project_id, lock=True)
        project.retention = None if retention == ORGANIZATION_DEFAULT else retention
        call.record(session, "data_retention.update", project_id, {"type": retention}, project_id=project_id)
    return ProjectRetention(type=retention)


@router.get("/organization/data_retention")
def retrieve_data_retention(call: Admin) -> OrganizationRetention:
    """Return what is kept of the requests of projects without a setting of their own."""
    with call.db.read() as session:
        return OrganizationRetention(type=organization_retention(session))


@router.post("/organization/data_retention")
def update_data_retention(call: Admin, body: UpdateOrganizationRetention) -> OrganizationRetention:
    """Set what is kept of the requests of projects without a setting of their own."""
    with call.db.write() as session:
        set_organization_retention(session, body.retention_type)
        call.record(session, "data_retention.update", "organization", {"type": body.retention_type})
    return OrganizationRetention(type=body.retention_type)
