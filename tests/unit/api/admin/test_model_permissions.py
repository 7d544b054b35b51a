"""Permissions of models: set with the SDK, and felt by the project."""

import openai
import pytest
from fastapi import FastAPI

from tests.unit.api.admin.conftest import AdministeredProject

CHAT, EMBEDDER = "smollm2-135m-instruct", "all-minilm-l6-v2"


def names(administered: AdministeredProject) -> list[str]:
    return [model["id"] for model in administered.client.get("/v1/models").json()["data"]]


def test_permission_is_set_shown_and_removed(administered: AdministeredProject) -> None:
    permissions = administered.projects.model_permissions

    with pytest.raises(openai.NotFoundError):
        permissions.retrieve(administered.project_id)
    made = permissions.update(administered.project_id, mode="deny_list", model_ids=[CHAT, CHAT])
    assert (made.object, made.mode, made.api_model_ids) == ("project.model_permissions", "deny_list", [CHAT])
    assert permissions.retrieve(administered.project_id) == made
    deleted = permissions.delete(administered.project_id)
    assert (deleted.object, deleted.deleted) == ("project.model_permissions.deleted", True)
    with pytest.raises(openai.NotFoundError):
        permissions.delete(administered.project_id)
    assert administered.audited("model_permissions.update") == [{"mode": "deny_list", "model_ids": [CHAT]}]


def test_permission_is_shown_with_its_project_and_with_no_other(administered: AdministeredProject) -> None:
    other = administered.projects.create(name="other")

    made = administered.projects.model_permissions.update(administered.project_id, mode="allow_list", model_ids=[CHAT])

    listed = {project.id: project.model_permissions for project in administered.projects.list()}
    assert listed == {administered.project_id: made.to_dict(), other.id: None}
    assert administered.projects.retrieve(administered.project_id).model_permissions == made.to_dict()


def test_denied_model_is_hidden_from_its_project_alone(administered: AdministeredProject, app: FastAPI) -> None:
    assert names(administered) == [CHAT, EMBEDDER]

    administered.projects.model_permissions.update(administered.project_id, mode="deny_list", model_ids=[CHAT])

    assert names(administered) == [EMBEDDER]
    answer = administered.client.get(f"/v1/models/{CHAT}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert CHAT not in answer.json()["error"]["message"].partition("does not exist")[2]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"mode": "all", "model_ids": []}, "mode"),
        ({"mode": "deny_list"}, "model_ids"),
        ({"mode": "deny_list", "model_ids": [""]}, "model_ids[0]"),
        ({"mode": "deny_list", "model_ids": ["a"] * 1001}, "model_ids"),
        ({"mode": "deny_list", "model_ids": [CHAT], "projects": ["*"]}, "projects"),
    ],
)
def test_invalid_permission_is_refused_and_changes_nothing(
    administered: AdministeredProject, body: dict[str, object], param: str
) -> None:
    path = f"/v1/organization/projects/{administered.project_id}/model_permissions"

    answer = administered.http.post(path, json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert administered.http.get(path).status_code == 404


def test_unknown_project_is_not_found(administered: AdministeredProject) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        administered.projects.model_permissions.update("proj_x", mode="deny_list", model_ids=[])

    assert unknown.value.code == "project_not_found"


def test_key_of_the_project_cannot_raise_its_own_permission(administered: AdministeredProject) -> None:
    path = f"/v1/organization/projects/{administered.project_id}/model_permissions"

    assert administered.client.post(path, json={"mode": "allow_list", "model_ids": [CHAT]}).status_code == 403
