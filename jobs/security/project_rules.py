"""Further rules of a project: hosted tools, service tiers, and what is kept of its requests.

tier of a setting      in a request          runs
standard               default               before batches; allowed in every project
flex                   flex                  with batches
fast                   priority, fast        before `default`
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.errors import InvalidRequest
from jobs.fleet.tables import Meta
from jobs.requests.values import SERVICE_TIERS
from jobs.security.tables import Project

STANDARD: Final = "standard"
ALL_TIERS: Final = "all"
#: The name that a request and its answer have for the tier of a setting.
TIERS: Final[Mapping[str, str]] = {STANDARD: "default", "flex": "flex", "fast": "priority"}
_SPELLINGS: Final[Mapping[str, str]] = {**{tier: tier for tier in TIERS.values()}, "fast": "priority"}
#: The hosted tools that OpenAI names; this deployment has one of them.
FILE_SEARCH: Final = "file_search"
HOSTED_TOOLS: Final = (FILE_SEARCH, "web_search", "image_generation", "mcp", "code_interpreter")

ZERO_RETENTION: Final = "zero_data_retention"
ORGANIZATION_DEFAULT: Final = "organization_default"
NO_RETENTION_RULE: Final = "none"
#: Seconds for which the results of a batch are kept with ZERO_RETENTION: the shortest that a request may name.
MIN_EXPIRY_SECONDS: Final = 3600
_RETENTION: Final = "data_retention"  # of the organization, in the table `meta`


@dataclass(frozen=True, slots=True)
class TierRule:
    """The tiers of a project's requests, by their names in requests. `default` is that of one which names none."""

    default: str = "default"
    allowed: frozenset[str] = frozenset({"default"})

    def tier_of(self, requested: object) -> str:
        """Return the tier that runs a request. Raises InvalidRequest.

        A value that is no tier is left to the check of the request's values.
        """
        if requested == "auto" or requested not in SERVICE_TIERS:
            return self.default
        tier = _SPELLINGS.get(str(requested), "")
        if tier not in self.allowed:
            message = "The requested service tier is not allowed for this project."
            raise InvalidRequest(message, param="service_tier", code="invalid_value")
        return tier


class ProjectRules(NamedTuple):
    """The rules of a project's requests. `keeps_nothing`: neither stored answers nor cached ones."""

    tiers: TierRule
    keeps_nothing: bool


def rules_of(session: Session, project_id: str) -> ProjectRules:
    """Return the rules of a project."""
    row = session.execute(select(Project.service_tiers, Project.retention).where(Project.id == project_id)).first()
    tiers, retention = row if row is not None else (None, None)
    return ProjectRules(tier_rule(tiers), (retention or organization_retention(session)) == ZERO_RETENTION)


def tier_rule(setting: Mapping[str, Any] | None) -> TierRule:
    """Return the rule of a project's setting."""
    if setting is None:
        return TierRule()
    enabled = TIERS if setting["enabled"] == ALL_TIERS else (STANDARD, *setting["enabled"])
    return TierRule(TIERS[setting["default"]], frozenset(TIERS[name] for name in enabled))


def organization_retention(session: Session) -> str:
    """Return what is kept of the requests of projects without a rule of their own."""
    return session.scalar(select(Meta.value).where(Meta.key == _RETENTION)) or NO_RETENTION_RULE


def set_organization_retention(session: Session, retention: str) -> None:
    session.merge(Meta(key=_RETENTION, value=retention))


def allows_tool(session: Session, project_id: str, tool: str) -> bool:
    """Return whether a project's requests may use a hosted tool."""
    tools = session.scalar(select(Project.hosted_tools).where(Project.id == project_id)) or {}
    return tool == FILE_SEARCH and bool(tools.get(tool, True))
