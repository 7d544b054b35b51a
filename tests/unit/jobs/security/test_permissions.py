"""Permissions: one table of areas, from which roles, wildcards and what custom roles may hold follow."""

import pytest

from jobs.errors import InvalidRequest
from jobs.security import permissions
from jobs.security.permissions import ALL, CUSTOM, PREDEFINED


@pytest.mark.parametrize(
    ("area", "method", "permission"),
    [
        ("files", "GET", "api.files.read"), ("files", "POST", "api.files.write"),
        ("files", "DELETE", "api.files.write"), ("model", "POST", "api.model.request"),
        ("model", "DELETE", "api.model.write"), ("rerank", "POST", "api.rerank.request"),
    ],
)  # fmt: skip
def test_method_requires_the_verb_of_its_area(area: str, method: str, permission: str) -> None:
    assert permissions.permission_for(area, method) == permission
    assert permission in ALL


def test_wildcard_stands_for_its_verb_in_every_area() -> None:
    read, write, request = (permissions.expand([f"api.all.{verb}"]) for verb in ("read", "write", "request"))

    assert read | write | request == ALL
    assert {"api.files.read", "api.usage.read"} < read
    assert request == {"api.model.request", "api.rerank.request"}
    assert permissions.expand(["api.files.read", "api.all.request"]) == request | {"api.files.read"}


def test_predefined_roles_are_nested() -> None:
    roles = {name: role.permissions for name, role in PREDEFINED.items()}
    member, viewer = roles["role-project-member"], roles["role-project-viewer"]

    assert viewer < member < roles["role-project-owner"] < roles["role-org-owner"] == ALL
    assert roles["role-org-reader"].isdisjoint(
        {"api.usage.read", "api.management.read", "api.webhooks.write", "api.organization.projects.api_keys.write"}
    )
    assert viewer.isdisjoint({"api.model.request", "api.responses.read", "api.vector_stores.read", "api.files.write"})
    assert member.isdisjoint(
        {"api.organization.projects.write", "api.organization.projects.service_accounts.read", "api.usage.read"}
    )
    assert permissions.of_project_role("none") == frozenset()


def test_custom_roles_hold_no_administration() -> None:
    assert CUSTOM["project"] < CUSTOM["organization"] < ALL
    assert CUSTOM["organization"] - CUSTOM["project"] == {"api.usage.read"}
    assert CUSTOM["organization"].isdisjoint({"api.batch.read", "api.management.read", "api.roles.write"})


@pytest.mark.parametrize("scope", ["api.files.request", "api.nothing.read", "files.read", "api.all.admin", "", "*"])
def test_unknown_scope_is_refused(scope: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        permissions.check_scopes(["api.files.read", scope], "scopes")

    assert (refusal.value.param, refusal.value.code) == ("scopes", "unknown_permission")
