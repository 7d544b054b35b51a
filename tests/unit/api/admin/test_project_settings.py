"""Hosted tools, service tiers and data retention of a project, set with the SDK."""

from typing import Any

import openai
import pytest

from jobs.security.project_rules import allows_tool, rules_of
from tests.unit.api.admin.conftest import AdministeredProject


def test_file_search_is_the_only_tool_that_can_be_switched(administered: AdministeredProject) -> None:
    tools = administered.projects.hosted_tool_permissions
    assert tools.retrieve(administered.project_id).model_dump() == {
        "file_search": {"enabled": True}, "web_search": {"enabled": False}, "image_generation": {"enabled": False},
        "mcp": {"enabled": False}, "code_interpreter": {"enabled": False},
    }  # fmt: skip

    off: Any = {"file_search": {"enabled": False}, "web_search": {"enabled": False}}
    assert tools.update(administered.project_id, **off).file_search.enabled is False
    with administered.app.state.services.db.read() as session:
        assert not allows_tool(session, administered.project_id, "file_search")
    with pytest.raises(openai.BadRequestError) as refused:
        tools.update(administered.project_id, file_search={"enabled": True}, mcp={"enabled": True})

    assert refused.value.param == "mcp"
    assert tools.retrieve(administered.project_id).file_search.enabled is False


@pytest.mark.parametrize(
    ("changes", "default", "enabled"),
    [
        ({"enabled_tiers": ["flex"]}, "standard", ["flex"]),
        ({"enabled_tiers": "all", "default": "fast"}, "fast", "all"),
        ({"enabled_tiers": []}, "standard", []),
        ({"default": "standard"}, "standard", []),
    ],
)
def test_tiers_are_set(administered: AdministeredProject, changes: dict[str, Any], default: str, enabled: Any) -> None:
    settings = administered.projects.service_tier_settings

    made = settings.update(administered.project_id, **changes)

    assert (made.object, made.default, made.enabled_tiers) == ("project.service_tier_settings", default, enabled)
    assert settings.retrieve(administered.project_id) == made


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
def test_tiers_that_are_not_served_are_refused(administered: AdministeredProject, changes: dict[str, Any]) -> None:
    settings = administered.projects.service_tier_settings

    with pytest.raises(openai.BadRequestError):
        settings.update(administered.project_id, **changes)

    assert settings.retrieve(administered.project_id).enabled_tiers == []


def test_retention_of_the_organization_holds_for_projects_without_their_own(administered: AdministeredProject) -> None:
    ours, projects = administered.sdk.admin.organization.data_retention, administered.projects.data_retention

    def keeps_nothing() -> bool:
        with administered.app.state.services.db.read() as session:
            return bool(rules_of(session, administered.project_id).keeps_nothing)

    assert projects.retrieve(administered.project_id).type == "organization_default"
    assert not keeps_nothing()
    assert ours.update(retention_type="zero_data_retention").type == "zero_data_retention"
    assert (ours.retrieve().object, keeps_nothing()) == ("organization.data_retention", True)
    assert projects.update(administered.project_id, retention_type="none").type == "none"
    assert not keeps_nothing()
    projects.update(administered.project_id, retention_type="organization_default")
    assert keeps_nothing()


@pytest.mark.parametrize("kind", ["modified_abuse_monitoring", "enhanced_zero_data_retention", "all"])
def test_retention_that_is_not_served_is_refused(administered: AdministeredProject, kind: Any) -> None:
    for ask in (
        lambda: administered.sdk.admin.organization.data_retention.update(retention_type=kind),
        lambda: administered.projects.data_retention.update(administered.project_id, retention_type=kind),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            ask()
        assert refused.value.param == "retention_type"
