"""Families of all kinds over HTTP: listed, paged, with their versions, and only to those who may read them."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from jobs.registry import base_versions
from jobs.registry.base_versions import LoadedModel
from jobs.security import keys
from tests.support.tuning_requests import BASE, create, registered
from tests.support.web import make_key
from tests.unit.api.conftest import client_of

PROMPT = {"instructions": "Answer in one sentence."}


def announce(app: FastAPI, *fingerprints: str, model: str = BASE, engine: str = "vllm") -> None:
    for fingerprint in fingerprints:
        with app.state.services.db.write() as session:
            loaded = LoadedModel(model, engine, f"{model} {fingerprint}", fingerprint * 64, "apache-2.0")
            base_versions.record(session, [loaded])


def families(client: TestClient, **query: Any) -> dict[str, tuple[int, int, int | None]]:
    answer = client.get("/v1/families", params=query)
    assert answer.status_code == 200, answer.text
    rows = answer.json()["data"]
    return {row["id"]: (row["versions"], row["latest"], row["production"]) for row in rows}


def versions(client: TestClient, family: str, **query: Any) -> list[dict[str, Any]]:
    answer = client.get(f"/v1/families/{family}/versions", params=query)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def fill(app: FastAPI, client: TestClient) -> dict[str, str]:
    """Make families of all kinds, and return the ids of the prompt and of the store."""
    announce(app, "a", "b")
    announce(app, "c", model="gpt-4o-mini", engine="http")
    for _ in range(3):
        name = registered(app, create(client, suffix="support"))
    assert client.post(f"/v1/model_versions/{name}", json={"stage": "production"}).status_code == 200
    prompt = client.post("/v1/prompts", json=PROMPT).json()["id"]
    assert client.post(f"/v1/prompts/{prompt}/versions", json={"instructions": "Answer at length."}).status_code == 200
    store = client.post("/v1/vector_stores", json={"name": "manuals"}).json()["id"]
    body = {
        "chunking_strategy": {"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 0}}
    }
    made = client.post(f"/v1/vector_stores/{store}/indexes", json=body)
    assert made.status_code == 200, made.text
    return {"prompt": prompt, "store": store, "index": made.json()["id"], "model": name}


def test_families_of_all_kinds_are_listed_with_counts_and_current_version(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    made = fill(either, client)

    listed = families(client)

    assert listed == {
        f"base:{BASE}": (2, 2, 2),
        f"index:{made['store']}": (2, 2, 1),
        f"prompt:{made['prompt']}": (2, 2, 1),
        "server_model:gpt-4o-mini": (1, 1, 1),
        f"tuned_model:{BASE}:support": (3, 3, 3),
    }
    assert list(listed) == sorted(listed)
    assert families(client, kind="prompt").keys() == {f"prompt:{made['prompt']}"}


def test_pages_hold_each_family_once(app: FastAPI, client: TestClient) -> None:
    fill(app, client)
    for name in ("alpha", "beta", "gamma"):
        announce(app, "d", model=name)
    pages, after = [], None

    while True:
        page = client.get("/v1/families", params={"limit": 2, **({"after": after} if after else {})}).json()
        pages += [row["id"] for row in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break

    assert pages == list(families(client))
    assert len(pages) == 8


def test_versions_of_each_kind_are_shown(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    made = fill(either, client)

    bases = versions(client, f"base:{BASE}")
    tuned = versions(client, f"tuned_model:{BASE}:support", order="asc")
    prompts = versions(client, f"prompt:{made['prompt']}")
    indexes = versions(client, f"index:{made['store']}")

    assert [(row["number"], row["stage"], row["source"], row["license"]) for row in bases] == [
        (2, "production", f"{BASE} b", "apache-2.0"),
        (1, "archived", f"{BASE} a", "apache-2.0"),
    ]
    assert all(row["seen_at"] >= row["created_at"] for row in bases)
    assert [(row["number"], row["stage"], row["source"]) for row in tuned] == [
        (1, "none", BASE), (2, "none", BASE), (3, "production", BASE),
    ]  # fmt: skip
    assert tuned[-1]["name"] == made["model"]
    assert [(row["number"], row["stage"]) for row in prompts] == [(2, "none"), (1, "production")]
    assert prompts[0]["fingerprint"] != prompts[1]["fingerprint"]
    assert [(row["number"], row["name"], row["stage"]) for row in indexes] == [
        (2, made["index"], "none"), (1, made["store"], "production"),
    ]  # fmt: skip


def test_former_version_returns_to_production(app: FastAPI, client: TestClient) -> None:
    announce(app, *"aba")

    assert families(client) == {f"base:{BASE}": (2, 2, 1)}
    assert [(row["number"], row["stage"]) for row in versions(client, f"base:{BASE}")] == [
        (2, "archived"), (1, "production"),
    ]  # fmt: skip


def test_versions_are_paged_by_their_number(app: FastAPI, client: TestClient) -> None:
    announce(app, *"abcde")

    first = versions(client, f"base:{BASE}", limit=2)
    second = versions(client, f"base:{BASE}", limit=2, after=first[-1]["id"])

    assert [row["number"] for row in (*first, *second)] == [5, 4, 3, 2]


def test_families_of_other_projects_are_hidden(app: FastAPI, client: TestClient, stranger: TestClient) -> None:
    made = fill(app, client)

    assert families(stranger).keys() == {f"base:{BASE}", "server_model:gpt-4o-mini"}
    for family in (f"prompt:{made['prompt']}", f"index:{made['store']}", f"tuned_model:{BASE}:support"):
        assert stranger.get(f"/v1/families/{family}/versions").status_code == 404


def test_narrowed_key_lists_only_permitted_kinds(app: FastAPI, client: TestClient) -> None:
    made = fill(app, client)
    with app.state.services.db.write() as session:
        narrow = keys.create_key(session, "default", scopes=["api.model_versions.read"])
    reader = client_of(app, narrow)

    assert families(reader).keys() == {f"base:{BASE}", "server_model:gpt-4o-mini", f"tuned_model:{BASE}:support"}
    assert families(reader, kind="prompt") == families(reader, kind="index") == {}
    assert reader.get(f"/v1/families/prompt:{made['prompt']}/versions").status_code == 404


@pytest.mark.parametrize("family", ["base:none", "prompt:pmpt_none", "base:", "nothing", "wizard:smollm2"])
def test_unknown_family_is_not_found(client: TestClient, family: str) -> None:
    answer = client.get(f"/v1/families/{family}/versions")

    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "family")


@pytest.mark.parametrize("after", ["nothing", "wizard:smollm2", f"base:{BASE}:x", "base:other:1"])
def test_cursor_that_names_nothing_is_refused(app: FastAPI, client: TestClient, after: str) -> None:
    announce(app, "a")

    answer = client.get(f"/v1/families/base:{BASE}/versions", params={"after": after})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_cursor")
