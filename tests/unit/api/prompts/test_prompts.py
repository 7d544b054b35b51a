"""Prompts over HTTP: their verbs, versions, labels, imports and bounds."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from jobs.prompts import versions

GREETING: dict[str, Any] = {
    "name": "greeting",
    "model": "smollm2-135m-instruct",
    "instructions": "You are {{ persona }}.",
    "messages": [{"role": "user", "content": "Greet {{name}} in {{language}}."}],
    "parameters": {"temperature": 0.2},
    "variables": [{"name": "language", "default": "English"}],
}


def make(client: TestClient, path: str = "", **changes: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/prompts{path}", json=(GREETING if not path else {}) | changes)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def ids(client: TestClient, query: str = "") -> list[str]:
    return [prompt["id"] for prompt in client.get(f"/v1/prompts{query}").json()["data"]]


def test_prompt_is_created_with_its_first_version(client: TestClient) -> None:
    made = make(client, metadata={"team": "a"})
    version = made["version"]

    assert made["id"].startswith("pmpt_")
    assert (made["object"], made["name"], made["metadata"]) == ("prompt", "greeting", {"team": "a"})
    assert (made["default_version"], made["latest_version"], made["labels"]) == ("1", "1", {})
    assert (made["archived_at"], made["imported_from"]) == (None, None)
    assert (version["object"], version["prompt_id"], version["version"]) == ("prompt.version", made["id"], "1")
    assert version["created_by"].startswith("key:")
    assert len(version["hash"]) == 64
    assert version["messages"] == GREETING["messages"]
    assert (version["tools"], version["tool_choice"], version["text"]) == ([], None, None)
    assert {variable["name"]: variable["default"] for variable in version["variables"]} == {
        "persona": None, "name": None, "language": "English",
    }  # fmt: skip
    assert client.get(f"/v1/prompts/{made['id']}").json() == made
    assert client.get("/v1/prompts").json()["data"] == [made]


def test_repeated_key_creates_single_prompt_and_single_version(client: TestClient) -> None:
    key = {"Idempotency-Key": "k"}
    first, again = (client.post("/v1/prompts", json=GREETING, headers=key).json() for _ in range(2))
    path = f"/v1/prompts/{first['id']}/versions"
    second, same = (client.post(path, json={"instructions": "b"}, headers=key).json() for _ in range(2))

    assert first == again
    assert second == same
    assert ids(client) == [first["id"]]
    assert len(client.get(path).json()["data"]) == 2


def test_new_version_leaves_default_until_update_moves_it(client: TestClient) -> None:
    prompt = make(client)
    second = make(client, f"/{prompt['id']}/versions", instructions="Be brief.")
    path = f"/v1/prompts/{prompt['id']}"

    assert second["version"] == "2"
    shown = client.get(path).json()
    assert (shown["default_version"], shown["latest_version"], shown["version"]["version"]) == ("1", "2", "1")
    moved = make(client, f"/{prompt['id']}", default_version="2", labels={"production": "1", "next": 2})
    assert (moved["default_version"], moved["version"]) == ("2", second)
    assert moved["labels"] == {"production": "1", "next": "2"}
    assert client.get(f"{path}/versions/next").json() == client.get(f"{path}/versions/2").json() == second
    assert client.get(f"{path}/versions/production").json() == prompt["version"]
    emptied = make(client, f"/{prompt['id']}", labels={"production": None, "next": "1"}, name=None)
    assert (emptied["labels"], emptied["name"]) == ({"next": "1"}, None)
    assert client.get(f"{path}/versions/production").status_code == 404


def test_versions_are_listed_in_pages_by_number(client: TestClient) -> None:
    prompt = make(client, version=7)
    for number in ("2", None, None):
        make(client, f"/{prompt['id']}/versions", instructions="x", version=number)
    path = f"/v1/prompts/{prompt['id']}/versions"

    first = client.get(path, params={"limit": 3}).json()
    rest = client.get(path, params={"after": first["last_id"]}).json()

    assert [version["version"] for version in first["data"]] == ["9", "8", "7"]
    assert (first["has_more"], [version["version"] for version in rest["data"]]) == (True, ["2"])
    assert [row["version"] for row in client.get(path, params={"order": "asc", "after": 8}).json()["data"]] == ["9"]
    for wrong in ("production", "1", "9" * 64):
        assert client.get(path, params={"after": wrong}).json()["error"]["code"] == "invalid_cursor"


def test_archived_prompts_are_listed_apart_and_still_found(client: TestClient) -> None:
    kept, archived = make(client)["id"], make(client, name="other")["id"]
    path = f"/v1/prompts/{archived}"

    assert client.post(f"{path}/archive").json()["archived_at"] is not None
    assert client.post(f"{path}/archive").status_code == 200
    assert (ids(client), ids(client, "?archived=true")) == ([kept], [archived])
    assert client.get(path).status_code == 200
    assert client.post(f"{path}/unarchive").json()["archived_at"] is None
    assert ids(client) == [archived, kept]
    assert ids(client, "?name=other") == [archived]


def test_import_keeps_id_and_number_and_repeats_without_change(client: TestClient) -> None:
    body = {"id": "pmpt_68a1", "version": 3}
    made = make(client, **body)

    assert (made["id"], made["imported_from"], made["default_version"]) == ("pmpt_68a1", "pmpt_68a1", "3")
    assert make(client, **body) == made
    conflict = client.post("/v1/prompts", json=GREETING | body | {"instructions": "other"})
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "prompt_exists")
    older = {"instructions": "old", "version": "1"}
    assert make(client, "/pmpt_68a1/versions", **older) == make(client, "/pmpt_68a1/versions", **older)
    assert client.post("/v1/prompts/pmpt_68a1/versions", json=older | {"instructions": "x"}).status_code == 409
    assert client.get("/v1/prompts/pmpt_68a1").json() == made


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"instructions": None, "messages": []}, "instructions"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        ({"parameters": {"store": True}}, "parameters.store"),
        ({"parameters": {"reasoning": {"effort": "huge"}}}, "parameters.reasoning.effort"),
        ({"variables": [{"name": "a"}, {"name": "a"}]}, "variables"),
        ({"variables": [{"name": "a b"}]}, "variables[0].name"),
        ({"variables": [{"name": "a", "type": "number", "default": "1"}]}, "variables"),
        ({"variables": [{"name": "persona", "type": "image"}]}, "variables"),
        ({"instructions": "x" * versions.MAX_BYTES}, None),
        ({"id": "prompt_1"}, "id"),
        ({"version": 0}, "version"),
        ({"version": "latest"}, "version"),
        ({"versions": []}, "versions"),
    ],
)
def test_invalid_content_is_refused_and_creates_nothing(
    client: TestClient, changes: dict[str, Any], param: str | None
) -> None:
    refused = client.post("/v1/prompts", json=GREETING | changes)

    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param
    assert ids(client) == []


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"default_version": "2"}, "default_version"),
        ({"labels": {"a": "2"}}, "labels.a"),
        ({"labels": {"2": "1"}}, "labels.2"),
    ],
)
def test_invalid_update_changes_nothing(client: TestClient, changes: dict[str, Any], param: str) -> None:
    made = make(client)
    refused = client.post(f"/v1/prompts/{made['id']}", json={"name": "new"} | changes)

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text
    assert client.get(f"/v1/prompts/{made['id']}").json() == made


def test_prompts_and_versions_are_bounded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "MAX_PROMPTS", 1)
    monkeypatch.setattr(versions, "MAX_VERSIONS", 1)
    made = make(client)

    refused = client.post("/v1/prompts", json=GREETING)
    assert refused.json()["error"]["code"] == "too_many_prompts"
    refused = client.post(f"/v1/prompts/{made['id']}/versions", json=GREETING | {"name": None})
    assert refused.status_code == 400


def test_prompts_are_hidden_from_other_projects(client: TestClient, stranger: TestClient) -> None:
    made = make(client, id="pmpt_1")
    path = "/v1/prompts/pmpt_1"

    answers = [stranger.get(path), stranger.get(f"{path}/versions"), stranger.post(path, json={"name": "x"})]
    assert [answer.status_code for answer in answers] == [404] * 3
    assert answers[0].json()["error"]["code"] == "prompt_not_found"
    assert make(stranger, id="pmpt_1", instructions="mine")["version"]["instructions"] == "mine"
    assert client.get(path).json() == made


def test_project_bytes_limit_prompts(make_app: Any) -> None:
    from tests.support.web import make_key
    from tests.unit.api.conftest import client_of

    app: FastAPI = make_app(project_max_bytes=1000)
    client = client_of(app, make_key(app))
    make(client)

    refused = client.post("/v1/prompts", json=GREETING | {"instructions": "x" * 900})
    assert refused.status_code == 507, refused.text
