"""Aliases over HTTP: made, changed, listed and deleted, and the names among the models."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from jobs.clock import now
from jobs.inference import request_counts
from jobs.inference.request_counts import ShadowCounts, ShadowKey
from jobs.ledger.tables import Audit
from jobs.registry import aliases
from jobs.security import keys
from jobs.security.model_permissions import set_rule
from tests.support.web import make_key
from tests.unit.api.conftest import client_of

MODEL, OTHER = "smollm2-135m-instruct", "all-minilm-l6-v2"
NAME = "ft:gpt-4o-mini:acme::abc/1"
PATH = f"/v1/aliases/{NAME}"


def create(client: TestClient, name: str = NAME, model: str = MODEL, **more: Any) -> Any:
    return client.post("/v1/aliases", json={"id": name, "model": model, **more})


def weigh(first: float, second: float, other: str = OTHER) -> dict[str, Any]:
    """Return the fields of an alias with two targets."""
    targets = [{"model": MODEL, "weight": first}, {"model": other, "weight": second}]
    return {"model": None, "targets": targets}


def moves_of(client: TestClient, name: str | None = NAME, **query: Any) -> Any:
    return client.get("/v1/alias_moves", params=query | ({"alias": name} if name else {})).json()


def test_alias_is_created_changed_and_deleted_with_its_audit_rows(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    made = create(client, metadata={"a": "b"})

    assert made.status_code == 200, made.text
    alias = made.json()
    assert (alias["id"], alias["object"], alias["model"], alias["metadata"]) == (NAME, "model.alias", MODEL, {"a": "b"})
    assert client.get(PATH).json() == alias
    assert client.get("/v1/aliases").json()["data"] == [alias]
    changed = client.post(PATH, json={"model": OTHER}).json()
    assert (changed["model"], changed["metadata"], changed["created_at"]) == (OTHER, {"a": "b"}, alias["created_at"])
    assert client.post(PATH, json={"metadata": None}).json()["metadata"] is None
    assert (alias["source"], alias["targets"]) == ("project", [{"model": MODEL, "weight": 100}])
    assert client.delete(PATH).json() == {"id": NAME, "object": "model.alias.deleted", "deleted": True}
    assert client.get(PATH).status_code == client.delete(PATH).status_code == 404
    with either.state.services.db.read() as session:
        rows = session.scalars(select(Audit).where(Audit.action.startswith("alias.")).order_by(Audit.id)).all()
    assert [(row.action.removeprefix("alias."), row.target, row.details["model"]) for row in rows] == [
        ("create", NAME, MODEL), ("update", NAME, OTHER), ("update", NAME, OTHER), ("delete", NAME, OTHER)
    ]  # fmt: skip
    assert rows[1].details["former_model"] == MODEL


def test_repeated_create_returns_the_alias_and_another_model_conflicts(client: TestClient) -> None:
    first = create(client)

    assert create(client).json() == first.json()
    refused = create(client, model=OTHER)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "alias_exists")
    assert client.get(PATH).json()["model"] == MODEL


def test_repeated_key_creates_single_alias(client: TestClient) -> None:
    body, key = {"id": NAME, "model": MODEL}, {"Idempotency-Key": "k"}
    first = client.post("/v1/aliases", json=body, headers=key)
    client.delete(PATH)

    assert client.post("/v1/aliases", json=body, headers=key).json() == first.json()
    assert client.get("/v1/aliases").json()["data"] == []


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"id": OTHER}, "id", "model_exists"),
        ({"id": ""}, "id", "string_below_min_length"),
        ({"id": "a" * 256}, "id", "string_above_max_length"),
        ({"id": "a b"}, "id", None),
        ({"id": "*"}, "id", None),
        ({"model": "unknown"}, "model", "model_not_found"),
        ({"model": "first"}, "model", "alias_of_alias"),
        ({"model": "gpt-4o-mini"}, "model", "alias_of_alias"),
        ({"model": NAME}, "model", "model_not_found"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"weight": 1}, "weight", "unknown_parameter"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"targets": [{"model": MODEL, "weight": 100}]}, "targets", "mutually_exclusive_parameters"),
        ({"model": None, "targets": []}, "targets", "array_below_min_length"),
        (weigh(0, 100), "targets[0].weight", "integer_below_min_value"),
        (weigh(-1, 101), "targets[0].weight", "integer_below_min_value"),
        (weigh(50, 49), "targets", None),
        (weigh(50, 51), "targets", None),
        (weigh(50.5, 49.5), "targets[0].weight", None),
        ({"model": None, "targets": [{"model": MODEL, "weight": 50}] * 2}, "targets", None),
        ({"model": None, "targets": [{"model": MODEL, "weight": 1}] * 9}, "targets", "array_above_max_length"),
        ({"model": None, "targets": weigh(50, 50, "unknown")["targets"]}, "targets[1].model", "model_not_found"),
        ({"model": None, "targets": weigh(50, 50, "first")["targets"]}, "targets[1].model", "alias_of_alias"),
        ({"model": None, "targets": weigh(50, 50, NAME)["targets"]}, "targets[1].model", "model_not_found"),
        ({"fallbacks": [NAME]}, "fallbacks[0]", "model_not_found"),
        ({"fallbacks": [OTHER, "gpt-4o-mini"]}, "fallbacks[1]", "alias_of_alias"),
        ({"fallbacks": [OTHER, OTHER]}, "fallbacks", None),
        ({"fallbacks": list("abcde")}, "fallbacks", "array_above_max_length"),
        ({"sticky": "yes"}, "sticky", "invalid_type"),
        ({"reason": "a" * 513}, "reason", "string_above_max_length"),
        ({"shadow": {"model": MODEL}}, "shadow.model", "shadow_is_target"),
        ({"shadow": {"model": "unknown"}}, "shadow.model", "model_not_found"),
        ({"shadow": {"model": "first"}}, "shadow.model", "alias_of_alias"),
        ({"shadow": {"model": NAME}}, "shadow.model", "model_not_found"),
        ({"shadow": {}}, "shadow.model", "missing_required_parameter"),
        ({"shadow": OTHER}, "shadow", "invalid_type"),
        ({"shadow": {"model": OTHER, "share": 0}}, "shadow.share", "integer_below_min_value"),
        ({"shadow": {"model": OTHER, "share": 101}}, "shadow.share", "integer_above_max_value"),
        ({"shadow": {"model": OTHER, "max_in_flight": 0}}, "shadow.max_in_flight", "integer_below_min_value"),
        ({"shadow": {"model": OTHER, "max_in_flight": 65}}, "shadow.max_in_flight", "integer_above_max_value"),
        ({"fallback_after": 0}, "fallback_after", "integer_below_min_value"),
        ({"fallback_after": 601}, "fallback_after", "integer_above_max_value"),
        ({"fallback_after": "soon"}, "fallback_after", "invalid_type"),
        ({"shadow": {"model": OTHER, "compare": "judge"}}, "shadow.compare", None),
        ({"shadow": {"model": OTHER, "weight": 1}}, "shadow.weight", "unknown_parameter"),
    ],
)
def test_refused_alias_names_the_field_and_changes_nothing(
    make_app: Any, fields: dict[str, Any], param: str, code: str | None
) -> None:
    app = make_app(openai_aliases=True)
    client = client_of(app, make_key(app))
    create(client, "first")

    refused = client.post("/v1/aliases", json={"id": NAME, "model": MODEL, **fields})

    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert error["param"] == param
    assert code in (None, error["code"])
    listed = client.get("/v1/aliases?limit=100").json()["data"]
    assert [alias["id"] for alias in listed if alias["source"] == "project"] == ["first"]


def test_change_to_a_denied_or_unknown_model_is_refused_alike(app: FastAPI, client: TestClient) -> None:
    create(client)
    with app.state.services.db.write() as session:
        set_rule(session, keys.ensure_project(session, "default").id, "deny_list", [OTHER])

    refused = [client.post(PATH, json={"model": model}).json()["error"] for model in (OTHER, "unknown")]

    assert [error["code"] for error in refused] == ["model_not_found"] * 2
    assert client.get(PATH).json()["model"] == MODEL


def test_project_has_a_bounded_number_of_aliases(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "MAX_ALIASES", 2)

    answers = [create(client, f"a{n}").json() for n in range(3)]

    assert answers[2]["error"]["code"] == "too_many_aliases"
    client.delete("/v1/aliases/a0")
    assert create(client, "a2").status_code == 200


def test_alias_is_seen_by_its_own_project_alone(client: TestClient, stranger: TestClient) -> None:
    create(client)

    answers = [stranger.get(PATH), stranger.post(PATH, json={"model": OTHER}), stranger.delete(PATH)]

    assert [answer.status_code for answer in answers] == [404] * 3
    assert stranger.get("/v1/aliases").json()["data"] == []
    assert create(stranger, model=OTHER).json()["model"] == OTHER
    assert client.get(PATH).json()["model"] == MODEL


def test_list_of_models_names_the_target_of_an_alias(client: TestClient, stranger: TestClient) -> None:
    create(client)

    listed = {model["id"]: model for model in client.get("/v1/models?include=serving").json()["data"]}
    assert listed[NAME]["alias_of"] == listed[NAME]["serving"]["model"] == MODEL
    assert "alias_of" not in listed[MODEL]
    assert client.get(f"/v1/models/{NAME}").json()["alias_of"] == MODEL
    assert client.delete(f"/v1/models/{NAME}").json()["error"]["code"] == "model_not_deletable"
    assert NAME not in {model["id"] for model in stranger.get("/v1/models").json()["data"]}


def test_models_omit_an_alias_of_a_denied_model(app: FastAPI, client: TestClient) -> None:
    create(client)
    with app.state.services.db.write() as session:
        set_rule(session, keys.ensure_project(session, "default").id, "deny_list", [MODEL])

    assert client.get(f"/v1/models/{NAME}").status_code == 404


def test_key_that_may_only_ask_models_creates_no_alias(app: FastAPI) -> None:
    with app.state.services.db.write() as session:
        key = keys.create_key(session, "default", scopes=["api.model.request"])

    refused = create(client_of(app, key))

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")


def test_revert_of_a_canary_keeps_its_moves(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    create(client, reason="the first model")

    canary = client.post(PATH, json={**weigh(80, 20), "sticky": True, "reason": "try the new one"})
    assert canary.status_code == 200, canary.text
    assert (canary.json()["model"], canary.json()["sticky"]) == (MODEL, True)
    assert client.post(PATH, json={"fallbacks": [OTHER]}).json()["targets"] == canary.json()["targets"]
    assert client.post(PATH, json={"model": MODEL}).json()["sticky"] is True
    reverted = client.post(PATH, json={"revert": True, "reason": "too early"}).json()
    assert [target["weight"] for target in reverted["targets"]] == [80, 20]
    assert client.post(PATH, json={"revert": True}).json()["targets"] == [{"model": MODEL, "weight": 100}]
    client.delete(PATH)

    moves = moves_of(client)["data"]
    assert [(move["action"], move["reason"]) for move in moves] == [
        ("delete", None), ("revert", None), ("revert", "too early"), ("update", None), ("update", None),
        ("update", "try the new one"), ("create", "the first model"),
    ]  # fmt: skip
    assert [move["number"] for move in moves] == list(range(7, 0, -1))
    assert moves[0]["routing"] is None
    targets = [{"model": MODEL, "weight": 100}]
    routing = {"targets": targets, "sticky": False, "fallbacks": [], "rollback": True, "shadow": None}
    routing |= {"fallback_after": None}
    assert moves[-1]["routing"] == routing
    assert {move["alias"] for move in moves} == {NAME}
    assert len({move["actor"] for move in moves}) == 1


def test_change_that_changes_nothing_is_no_move(client: TestClient) -> None:
    create(client, **weigh(80, 20))

    for fields in (weigh(80, 20), {"metadata": {"a": "b"}}, {"reason": "none"}, {"sticky": False}, {}):
        assert client.post(PATH, json=fields).status_code == 200

    assert [move["action"] for move in moves_of(client)["data"]] == ["create"]


def test_revert_with_the_same_key_goes_back_once(client: TestClient) -> None:
    create(client)
    client.post(PATH, json={"model": OTHER})

    answers = [client.post(PATH, json={"revert": True}, headers={"Idempotency-Key": "k"}) for _ in range(2)]

    assert [answer.json()["model"] for answer in answers] == [MODEL] * 2
    assert len(moves_of(client)["data"]) == 3


def test_alias_that_has_not_moved_cannot_go_back(client: TestClient) -> None:
    create(client)

    refused = client.post(PATH, json={"revert": True})

    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "alias_not_moved")
    mixed = client.post(PATH, json={"revert": True, "model": OTHER})
    assert (mixed.status_code, mixed.json()["error"]["param"]) == (400, "revert")


def test_alias_goes_back_to_no_model_that_is_denied_now(app: FastAPI, client: TestClient) -> None:
    create(client)
    client.post(PATH, json={"model": OTHER})
    with app.state.services.db.write() as session:
        set_rule(session, keys.ensure_project(session, "default").id, "deny_list", [MODEL])

    refused = client.post(PATH, json={"revert": True})

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_not_found")
    assert client.get(PATH).json()["model"] == OTHER


def test_alias_is_shown_as_it_stood_at_a_time(either: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(either, make_key(either))
    at = 1_000_000_000.5
    monkeypatch.setattr(aliases, "now", lambda: at)
    create(client, metadata={"a": "b"})
    at += 10
    client.post(PATH, json=weigh(80, 20))
    at += 10
    client.delete(PATH)

    def past(seconds: int) -> Any:
        return client.get(PATH, params={"at": 1_000_000_000 + seconds})

    assert past(-1).status_code == past(20).status_code == past(30).status_code == client.get(PATH).status_code == 404
    assert [past(seconds).json()["targets"][0]["weight"] for seconds in (0, 9, 10, 19)] == [100, 100, 80, 80]
    shown = past(19).json()
    assert (shown["id"], shown["created_at"], shown["updated_at"]) == (NAME, 1_000_000_000, 1_000_000_010)
    assert shown["metadata"] is None
    refused = client.get(PATH, params={"at": "yesterday"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "at")
    assert client.get(PATH, params={"at": 10**20}).status_code == 400


def test_moves_are_paged_and_seen_by_their_project_alone(client: TestClient, stranger: TestClient) -> None:
    create(client)
    create(client, "other")
    for weight in (10, 20, 30):
        client.post(PATH, json=weigh(100 - weight, weight))

    first = moves_of(client, limit=2)
    rest = moves_of(client, limit=2, after=first["last_id"])

    numbers = [move["number"] for move in (*first["data"], *rest["data"])]
    assert (numbers, first["has_more"], rest["has_more"]) == ([5, 4, 3, 1], True, False)
    assert [move["alias"] for move in moves_of(client, None, order="asc")["data"]][:2] == [NAME, "other"]
    assert moves_of(stranger)["data"] == moves_of(stranger, None)["data"] == []
    assert moves_of(stranger, after=first["last_id"])["error"]["code"] == "invalid_cursor"
    assert stranger.get(PATH, params={"at": 2_000_000_000}).status_code == 404


def test_concurrent_updates_become_moves_in_sequence(either: FastAPI) -> None:
    clients = [client_of(either, make_key(either)) for _ in range(4)]
    create(clients[0])

    def grow(client: TestClient, weight: int) -> int:
        return client.post(PATH, json=weigh(100 - weight, weight)).status_code

    with ThreadPoolExecutor(4) as threads:
        codes = list(threads.map(grow, clients, (10, 20, 30, 40)))

    assert codes == [200] * 4
    moves = moves_of(clients[0])["data"]
    assert [move["number"] for move in moves] == [5, 4, 3, 2, 1]
    assert clients[0].get(PATH).json()["targets"] == moves[0]["routing"]["targets"]


def test_aliases_of_the_models_file_are_listed_as_the_oldest_and_read_only(make_app: Any) -> None:
    app = make_app(openai_aliases=True)
    client = client_of(app, make_key(app))
    static = [alias["id"] for alias in client.get("/v1/aliases?limit=100&order=asc").json()["data"]]
    for name in ("a1", "a2", "a3"):
        create(client, name)

    for order, expected in (("asc", [*static, "a1", "a2", "a3"]), ("desc", ["a3", "a2", "a1", *reversed(static)])):
        seen: list[str] = []
        more = True
        while more:
            query = {"limit": 2, "order": order, **({"after": seen[-1]} if seen else {})}
            page = client.get("/v1/aliases", params=query).json()
            assert len(page["data"]) <= 2
            seen += [alias["id"] for alias in page["data"]]
            more = page["has_more"]
        assert seen == expected

    shown = client.get("/v1/aliases/gpt-4o-mini").json()
    assert (shown["source"], shown["created_by"]) == ("models_file", None)
    answers = [client.post("/v1/aliases/gpt-4o-mini", json={"model": OTHER}), client.delete("/v1/aliases/gpt-4o-mini")]
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in answers} == {(409, "alias_read_only")}
    create(client, "gpt-4o-mini", OTHER)
    assert client.get("/v1/aliases/gpt-4o-mini").json()["source"] == "project"
    listed = [alias["id"] for alias in client.get("/v1/aliases?limit=100").json()["data"]]
    assert sorted(listed) == sorted({*static, "a1", "a2", "a3"})


def test_alias_of_the_models_file_for_a_denied_model_is_hidden(make_app: Any) -> None:
    app = make_app(openai_aliases=True)
    client = client_of(app, make_key(app))
    with app.state.services.db.write() as session:
        set_rule(session, keys.ensure_project(session, "default").id, "deny_list", [MODEL])

    assert client.get("/v1/aliases/gpt-4o-mini").status_code == 404
    assert client.delete("/v1/aliases/gpt-4o-mini").status_code == 404


def test_shadow_is_shown_with_its_counts_of_the_last_day(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    shadow = {"model": OTHER, "compare": "length"}
    made = create(client, shadow=shadow)
    assert made.status_code == 200, made.text
    with either.state.services.db.write() as session:
        key = ShadowKey(keys.ensure_project(session, "default").id, NAME, OTHER, int(now()) // 60 * 60)
        counts = ShadowCounts(9, 5, 3, 1, 4, 2, 6.0)
        others = key._replace(minute=key.minute - 90_000), key._replace(model="old"), key._replace(alias="other")
        request_counts.write(session, dict.fromkeys((key, *others, key._replace(project_id="p")), counts))
        request_counts.write(session, {key: counts})

    shown = client.get(PATH).json()

    assert shown["shadow"] == {"share": 100, "max_in_flight": 4, **shadow}
    assert shown["shadow_counts"] == {
        "requests": 18, "sent": 10, "dropped": 6, "failed": 2, "compared": 8, "equal": None, "length_ratio": 1.5
    }  # fmt: skip
    assert client.get("/v1/aliases").json()["data"] == [shown]
    changed = client.post(PATH, json={"shadow": {**shadow, "compare": "exact_match"}}).json()
    assert changed["shadow"]["compare"] == "exact_match"
    shown = client.get(PATH).json()["shadow_counts"]
    assert (shown["equal"], shown["length_ratio"]) == (4, None)


def test_shadow_stays_until_it_is_null_and_becomes_no_target(client: TestClient) -> None:
    create(client, shadow={"model": OTHER})

    assert client.post(PATH, json={"sticky": True}).json()["shadow"]["model"] == OTHER
    for fields in (weigh(80, 20), {"model": OTHER}):
        refused = client.post(PATH, json=fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "shadow.model")
    assert client.post(PATH, json={"model": OTHER, "shadow": None}).json()["shadow"] is None
    reverted = client.post(PATH, json={"revert": True}).json()
    assert (reverted["model"], reverted["shadow"]["model"]) == (MODEL, OTHER)
    assert client.get(PATH).json()["shadow_counts"]["requests"] == 0
    assert [move["routing"]["shadow"] for move in moves_of(client)["data"]].count(None) == 1


def test_project_that_may_not_ask_a_model_has_no_shadow_of_it(app: FastAPI, client: TestClient) -> None:
    with app.state.services.db.write() as session:
        set_rule(session, keys.ensure_project(session, "default").id, "deny_list", [OTHER])

    refused = create(client, shadow={"model": OTHER}).json()["error"]

    assert (refused["param"], refused["code"]) == ("shadow.model", "model_not_found")
    assert client.get(PATH).status_code == 404
