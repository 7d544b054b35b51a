"""Permissions: strings `api.<area>.<verb>`, which roles and the scopes of keys hold and routes require.

    GET ─▶ read      POST ─▶ request, in an area that asks models; else write      DELETE ─▶ write

    permissions of a request = scopes of its key, all where none are set  ∩  permissions of the key's owner

"api.all.read" is each permission to read, and so on for the other verbs. Areas are named as OpenAI names them where it
has a name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from jobs.errors import InvalidRequest

Level = Literal["organization", "project"]


@dataclass(frozen=True, slots=True)
class Area:
    """The routes of a permission. `verbs` are separated by spaces; custom roles hold only areas that are `custom`."""

    title: str
    verbs: str = "read write"
    level: Level = "project"
    custom: bool = True


AREAS: Final[dict[str, Area]] = {
    "model": Area("Models, their streams and the response cache", "read write request"),
    "aliases": Area("Aliases of models"),
    "model_versions": Area("Versions of tuned models, their stages and lineage"),
    "feedback": Area("Feedback on answers"),
    "rerank": Area("Re-ranking", "request"),
    "chat_completions": Area("Stored chat completions"),
    "responses": Area("Responses and conversations"),
    "files": Area("Files and uploads"),
    "batch": Area("Batches", custom=False),
    "schedules": Area("Schedules"),
    "pipelines": Area("Pipelines"),
    "promotions": Area("Promotions"),
    "prompts": Area("Prompts and their versions"),
    "monitoring": Area("Monitors of drift, and online evaluations"),
    "jobs": Area("Jobs, their results and events"),
    "vector_stores": Area("Vector stores, their sources and indexes"),
    "datasets": Area("Datasets and their versions"),
    "evals": Area("Evals"),
    "fine_tuning": Area("Fine-tuning"),
    "webhooks": Area("Webhooks"),
    "audit_logs": Area("The audit log of a project", "read"),
    "project": Area("The project of a key", "read"),
    "organization.projects.api_keys": Area("Project API keys"),
    "organization.projects.service_accounts": Area("Service accounts", custom=False),
    "organization.projects": Area("Project administration", custom=False),
    # Roles that were written for OpenAI may hold these, which open nothing here.
    "agent_builder": Area("Agent Builder"),
    "apps": Area("Apps"),
    "assistants": Area("Assistants"),
    "threads": Area("Threads"),
    "tunnels": Area("Tunnels"),
    "usage": Area("Usage and costs", "read", level="organization"),
    "groups": Area("Groups", level="organization", custom=False),
    "roles": Area("Roles and their assignments", level="organization", custom=False),
    "management": Area(
        "Organization administration: admin keys, users, limits, audit log", level="organization", custom=False
    ),
    "deployment": Area("Workers, quarantined engines and pauses", level="organization", custom=False),
}


def _of(*names: str) -> frozenset[str]:
    """Return the permissions of areas."""
    return frozenset(f"api.{name}.{verb}" for name in names for verb in AREAS[name].verbs.split())


def _with_verb(permissions: Iterable[str], verb: str) -> frozenset[str]:
    return frozenset(name for name in permissions if name.endswith(f".{verb}"))


ALL: Final = _of(*AREAS)
_PROJECT: Final = _of(*(name for name, area in AREAS.items() if area.level == "project"))
_CUSTOM: Final = _of(*(name for name, area in AREAS.items() if area.custom))
#: What custom roles may hold. A role of the organization holds in each project, one of a project in that alone.
CUSTOM: Final[dict[Level, frozenset[str]]] = {"organization": _CUSTOM, "project": _CUSTOM & _PROJECT}
_WILDCARDS: Final = {f"api.all.{verb}": _with_verb(ALL, verb) for verb in ("read", "write", "request")}


@dataclass(frozen=True, slots=True)
class PredefinedRole:
    """A role that every deployment has. `name` is the SDK's word for the role of a user or a service account."""

    id: str
    name: Literal["owner", "reader", "member", "viewer"]
    title: str
    level: Level
    permissions: frozenset[str]


_MEMBER: Final = _PROJECT - _of("organization.projects", "organization.projects.service_accounts")

PREDEFINED: Final[dict[str, PredefinedRole]] = {
    role.id: role
    for role in (
        PredefinedRole("role-org-owner", "owner", "Organization owner", "organization", ALL),
        PredefinedRole(
            "role-org-reader",
            "reader",
            "Organization reader",
            "organization",
            # A reader has an admin key, which would change the keys of all projects.
            _MEMBER - {"api.webhooks.write", "api.agent_builder.write", "api.organization.projects.api_keys.write"}
            | {"api.groups.read", "api.roles.read"},
        ),
        PredefinedRole("role-project-owner", "owner", "Project owner", "project", _PROJECT),
        PredefinedRole("role-project-member", "member", "Project member", "project", _MEMBER),
        PredefinedRole(
            "role-project-viewer",
            "viewer",
            "Project viewer",
            "project",
            _with_verb(_MEMBER - _of("responses", "vector_stores"), "read"),
        ),
    )
}


def of_project_role(name: str) -> frozenset[str]:
    """Return the permissions of a predefined role of projects; none for the word `none`."""
    role = PREDEFINED.get(f"role-project-{name}")
    return role.permissions if role else frozenset()


def permission_for(area: str, method: str) -> str:
    """Return the permission that a method of the routes of an area requires."""
    if method in ("GET", "HEAD"):
        verb = "read"
    else:
        verb = "request" if method == "POST" and "request" in AREAS[area].verbs.split() else "write"
    return f"api.{area}.{verb}"


def expand(scopes: Iterable[str]) -> frozenset[str]:
    """Return the permissions that scopes stand for: `api.all.<verb>` stands for those of all areas."""
    return frozenset().union(*(_WILDCARDS.get(scope, {scope}) for scope in scopes))


def check_scopes(scopes: Iterable[str], param: str) -> None:
    """Check that each scope is a permission or stands for several.

    Raises: InvalidRequest.
    """
    for scope in scopes:
        if scope not in ALL and scope not in _WILDCARDS:
            message = f"There is no permission '{scope[:64]}'. Such are 'api.files.read' and 'api.all.read'."
            raise InvalidRequest(message, param=param, code="unknown_permission")
