"""Hosted tools, service tiers and data retention of a project, set with the SDK."""

from typing import Any

import openai
import pytest

from jobs.security.project_rules import allows_tool, rules_of
from tests.unit.api.admin.conftest import Organization


def test_file_search_is_the_only_tool_that_can_be_switched(organization: Organization) -> None:
    tools = organization.projects.hosted_tool_permissions
    assert tools.retrieve(organization.project_id).model_dump() == {
        "file_search": {"enabled": True}, "web_search": {"enabled": False}, "image_generation": {"enabled": False},
        "mcp": {"enabled": False}, "code_interpreter": {"enabled": False},
    }  # fmt: skip

    off: Any = {"file_search": {"enabled": False}, "web_search": {"enabled": False}}
    assert tools.update(organization.project_id, **off).file_search.enabled is False
    with organization.app.state.services.db.read() as session:
        assert not allows_tool(session, organization.project_id, "file_search")
    with pytest.raises(openai.BadRequestError) as refused:
        tools.update(organization.project_id, file_search={"enabled": True}, mcp={"enabled": True})

    assert refused.value.param == "mcp"
    assert tools.retrieve(organization.project_id).file_search.enabled is False


@pytest.mark.parametrize(
    ("changes", "default", "enabled"),
    [
        ({"enabled_tiers": ["flex"]}, "standard", ["flex"]),
        ({"enabled_tiers": "all", "default": "fast"}, "fast", "all"),
        ({"enabled_tiers": []}, "standard", []),
        ({"default": "standard"}, "standard", []),
    ],
)
def test_tiers_are_set(organization: Organization, changes: dict[str, Any], default: str, enabled: Any) -> None:
    settings = organization.projects.service_tier_settings

    made = settings.update(organization.project_id, **changes)

    assert (made.object, made.default, made.enabled_tiers) == ("project.service_tier_settings", default, enabled)
    assert settings.retrieve(organization.project_id) == made


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"default": "fast"},
        {"default": "scale"},
        {"enabled_tiers": ["ultrafast"]},
        {"enabled_tiers": ["flex", "flex", "flex", "flex"]},
        {"default": "fast", "enabled_tiers": ["flex"]},
    ],
)
def test_tiers_that_are_not_served_are_refused(organization: Organization, changes: dict[str, Any]) -> None:
    settings = organization.projects.service_tier_settings

    with pytest.raises(openai.BadRequestError):
        settings.update(organization.project_id, **changes)

    assert settings.retrieve(organization.project_id).enabled_tiers == []


def test_retention_of_the_organization_holds_for_projects_without_their_own(organization: Organization) -> None:
    ours, projects = organization.sdk.admin.organization.data_retention, organization.projects.data_retention

    def keeps_nothing() -> bool:
        with organization.app.state.services.db.read() as session:
            return bool(rules_of(session, organization.project_id).keeps_nothing)

    assert projects.retrieve(organization.project_id).type == "organization_default"
    assert not keeps_nothing()
    assert ours.update(retention_type="zero_data_retention").type == "zero_data_retention"
    assert (ours.retrieve().object, keeps_nothing()) == ("organization.data_retention", True)
    assert projects.update(organization.project_id, retention_type="none").type == "none"
    assert not keeps_nothing()
    projects.update(organization.project_id, retention_type="organization_default")
    assert keeps_nothing()


@pytest.mark.parametrize("kind", ["modified_abuse_monitoring", "enhanced_zero_data_retention", "all"])
def test_retention_that_is_not_served_is_refused(organization: Organization, kind: Any) -> None:
    for ask in (
        lambda: organization.sdk.admin.organization.data_retention.update(retention_type=kind),
        lambda: organization.projects.data_retention.update(organization.project_id, retention_type=kind),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            ask()
        assert refused.value.param == "retention_type"
