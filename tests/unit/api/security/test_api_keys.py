"""The keys of a project: created once with their value, listed without it, revoked; and the project's audit log."""

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import select, update

from api.security.audit import select_rows
from jobs.clock import now
from jobs.db.engine import Database
from jobs.ledger import audit
from jobs.ledger.tables import Audit
from jobs.security import keys
from jobs.security.keys import id_of
from jobs.security.tables import ApiKey, ServiceAccount
from tests.support.web import make_key
from tests.unit.api.batches.test_batches import create
from tests.unit.api.conftest import client_of


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    """Return a client with a key that manages those of the default project."""
    return client_of(app, make_key(app, manages=True))


@pytest.fixture
def stranger(app: FastAPI) -> TestClient:
    """Return a client with a key that manages those of another project."""
    return client_of(app, make_key(app, "another", manages=True))


def refusal(answer: Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_new_key_opens_its_project_and_is_shown_once(app: FastAPI, client: TestClient) -> None:
    batch = create(client)["id"]

    made = client.post("/v1/api_keys").json()
    listed = client.get("/v1/api_keys").json()

    assert client_of(app, made["value"]).get(f"/v1/jobs/{batch}").status_code == 200
    assert made["redacted_value"] == f"nm_{made['id']}...{made['value'][-4:]}"
    assert (len(listed["data"]), listed["data"][0]["id"]) == (2, made["id"])
    assert {row["object"] for row in listed["data"]} == {"organization.project.api_key"}
    assert made["value"] not in json.dumps(listed, ensure_ascii=False)


def test_key_lives_no_longer_than_its_creator(app: FastAPI, client: TestClient) -> None:
    with app.state.services.db.write() as session:
        end = session.scalars(select(ApiKey)).one().expires_at = now() + 3600

    lifetimes = [
        client.post("/v1/api_keys", json=body).json()["expires_at"] for body in ({}, {"expires_in_seconds": 60})
    ]

    assert lifetimes[0] == int(end)
    assert lifetimes[1] < end - 3000


def test_each_key_names_its_own_project(client: TestClient, stranger: TestClient) -> None:
    ours, theirs = (each.get("/v1/project").json() for each in (client, stranger))

    assert (ours["object"], ours["name"], ours["status"]) == ("organization.project", "default", "active")
    assert (theirs["name"], theirs["id"] != ours["id"]) == ("another", True)


def test_a_key_is_not_replayed_for_an_idempotency_key(client: TestClient) -> None:
    header = {"Idempotency-Key": "same"}

    first, second = (client.post("/v1/api_keys", headers=header).json() for _ in range(2))

    assert first["value"] != second["value"]


def test_a_revoked_key_opens_nothing_and_stays_in_the_list(app: FastAPI, client: TestClient) -> None:
    made = client.post("/v1/api_keys").json()

    deleted = client.delete(f"/v1/api_keys/{made['id']}")
    again = client.delete(f"/v1/api_keys/{made['id']}")

    assert deleted.json() == {
        "id": made["id"], "object": "organization.project.api_key.deleted", "deleted": True, "created_keys": [],
    }  # fmt: skip
    assert (again.status_code, again.json()["error"]["param"]) == (404, "api_key_id")
    assert client_of(app, made["value"]).get("/v1/files").status_code == 401
    revoked = {row["id"]: row["revoked_at"] for row in client.get("/v1/api_keys").json()["data"]}
    assert revoked[made["id"]] is not None
    assert list(revoked.values()).count(None) == 1


def test_keys_are_listed_in_pages(client: TestClient) -> None:
    for _ in range(3):
        client.post("/v1/api_keys")

    first = client.get("/v1/api_keys", params={"limit": 3}).json()
    second = client.get("/v1/api_keys", params={"limit": 3, "after": first["last_id"]}).json()

    assert (len(first["data"]), first["has_more"], len(second["data"]), second["has_more"]) == (3, True, 1, False)
    assert client.get("/v1/api_keys", params={"after": "nothing"}).json()["error"]["code"] == "invalid_cursor"


def test_the_keys_of_another_project_are_not_there(app: FastAPI, client: TestClient, stranger: TestClient) -> None:
    made = client.post("/v1/api_keys").json()

    assert made["id"] not in stranger.get("/v1/api_keys").text
    assert stranger.delete(f"/v1/api_keys/{made['id']}").status_code == 404
    with app.state.services.db.read() as session:
        assert keys.check_key(session, made["value"]) is not None


def test_ordinary_key_lists_keys_and_revokes_only_itself(app: FastAPI, client: TestClient) -> None:
    made, other = (client.post("/v1/api_keys").json() for _ in range(2))
    ordinary = client_of(app, made["value"])
    own, others = f"/v1/api_keys/{made['id']}", [f"/v1/api_keys/{name}" for name in (other["id"], "nothing0")]

    listed = ordinary.get("/v1/api_keys").json()["data"]
    refusals = [ordinary.post("/v1/api_keys"), ordinary.delete(f"{own}?cascade=true"), *map(ordinary.delete, others)]

    assert {row["id"] for row in listed if row["revoked_at"] is None} >= {made["id"], other["id"]}
    shown = {name: value for name, value in made.items() if name not in ("value", "last_used_at")}
    assert ordinary.get(own).json().items() >= shown.items()
    assert {refusal(answer) for answer in refusals} == {(403, "missing_scope")}
    assert refusals[0].json()["error"]["type"] == "invalid_request_error"
    assert ordinary.delete(own).json()["deleted"]
    assert client.get(own).json()["revoked_at"] is not None


def test_key_shows_management_permission_and_creator(client: TestClient, stranger: TestClient) -> None:
    made = client.post("/v1/api_keys").json()

    rows = {row["id"]: (row["manages_keys"], row["created_by"]) for row in client.get("/v1/api_keys").json()["data"]}

    [manager] = rows.keys() - {made["id"]}
    assert rows == {manager: (True, None), made["id"]: (False, manager)}
    assert [refusal(stranger.get(f"/v1/api_keys/{name}")) for name in rows] == [(404, "not_found")] * 2


def test_revocation_cascades_to_created_keys_only_on_request(app: FastAPI, client: TestClient) -> None:
    leaked, bystander = make_key(app, manages=True), client.post("/v1/api_keys").json()
    path = f"/v1/api_keys/{id_of(leaked)}"
    created = [client_of(app, leaked).post("/v1/api_keys").json() for _ in range(2)]
    ids = [key["id"] for key in created]

    told = client.delete(path).json()["created_keys"]
    live = client_of(app, created[0]["value"]).get("/v1/files").status_code
    cascaded = client.delete(path, params={"cascade": True})

    assert (told, live, cascaded.json()["created_keys"]) == (ids, 200, ids)
    assert refusal(client.delete(path, params={"cascade": True})) == (404, "not_found")
    with app.state.services.db.read() as session:
        live_keys = set(session.scalars(select(ApiKey.id).where(ApiKey.revoked_at.is_(None))))
        rows = session.scalars(select(Audit).where(Audit.action == "key.revoke").order_by(Audit.id)).all()
    assert live_keys == {bystander["created_by"], bystander["id"]}
    assert [(row.target, row.details) for row in rows] == [
        (id_of(leaked), None), *((name, {"cascade_of": id_of(leaked)}) for name in ids),
    ]  # fmt: skip
    assert {(row.actor, row.project_id is None) for row in rows} == {(f"key:{bystander['created_by']}", False)}


def test_a_project_has_a_limited_number_of_live_keys(
    client: TestClient, stranger: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "LIVE_KEYS", 2)
    made = client.post("/v1/api_keys").json()

    refused = client.post("/v1/api_keys")
    client.delete(f"/v1/api_keys/{made['id']}")

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_many_api_keys")
    assert client.post("/v1/api_keys").status_code == 200
    assert stranger.post("/v1/api_keys").status_code == 200


def test_the_audit_log_of_the_project_is_listed_from_the_newest_row_on(
    app: FastAPI, client: TestClient, stranger: TestClient
) -> None:
    batch = create(client)["id"]
    made = client.post("/v1/api_keys").json()
    client.delete(f"/v1/api_keys/{made['id']}")
    stranger.post("/v1/api_keys")

    everything = client.get("/v1/audit_logs", params={"limit": 100}).json()["data"]
    of_key = client.get("/v1/audit_logs", params={"target": made["id"]}).json()["data"]
    of_batch = client.get("/v1/audit_logs", params={"target": batch}).json()["data"]

    assert [row["type"] for row in of_key] == ["key.revoke", "key.create"]
    assert all(row["actor"].startswith("key:") for row in of_key)
    assert any(row["destination"] == "queued" for row in of_batch)
    assert [row["id"] for row in everything[:2]] == [row["id"] for row in of_key]
    assert sorted((row["id"] for row in everything), key=_number, reverse=True) == [row["id"] for row in everything]
    assert {row["sealed"] for row in everything} == {False}
    with app.state.services.db.write() as session:
        audit.seal(session)
    assert client.get("/v1/audit_logs", params={"limit": 1}).json()["data"][0]["sealed"]


def _number(row_id: str) -> int:
    return int(row_id.rpartition("-")[2])


def test_the_audit_log_is_listed_in_pages(client: TestClient) -> None:
    for _ in range(3):
        client.post("/v1/api_keys")
    whole = [row["id"] for row in client.get("/v1/audit_logs").json()["data"]]

    ids, after = list[str](), dict[str, str]()
    while True:
        page = client.get("/v1/audit_logs", params={"limit": 2, **after}).json()
        ids += [row["id"] for row in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}

    assert ids == whole


def test_the_audit_log_is_filtered_by_actor_type_and_time(either: FastAPI) -> None:
    first, second, stranger = (make_key(either, project, manages=True) for project in ("default", "default", "other"))
    created = [client_of(either, key).post("/v1/api_keys").json()["id"] for key in (first, second, second, stranger)]
    client = client_of(either, first)
    client.delete(f"/v1/api_keys/{created[0]}")
    with either.state.services.db.write() as session:
        for time, key in enumerate(created, 1_000):  # rows are listed by their time, whatever their number
            changed = Audit.target == key, Audit.action == "key.create"
            session.execute(update(Audit).where(*changed).values(at=time * 1_000_000 + 999_999))

    def find(**query: str | int) -> list[str]:
        page = client.get("/v1/audit_logs", params=query).json()
        return [row["target"] for row in page["data"]]

    actor = f"key:{id_of(second)}"
    assert find(actor=actor) == [created[2], created[1]]
    assert find(actor=actor, since=1_002) == find(actor=actor, limit=1) == [created[2]]
    assert find(type="key.revoke") == find(type="key.revoke", target=created[0]) == [created[0]]
    assert find(type="key.create", until=1_002) == [created[1], created[0]]
    assert find(type="key.create", since=1_001, until=1_002, actor=actor) == [created[1]]
    assert find(type="key.create", actor="key:none") == find(target=created[3]) == []
    page = client.get("/v1/audit_logs", params={"actor": actor, "limit": 1}).json()
    assert find(actor=actor, after=page["last_id"]) == [created[1]]
    of_stranger = client_of(either, stranger).get("/v1/audit_logs").json()["last_id"]
    assert client.get("/v1/audit_logs", params={"after": of_stranger}).json()["error"]["code"] == "invalid_cursor"


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({}, ["ix_audit_project (project_id=?)"]),
        ({"actor": "a"}, ["ix_audit_actor (project_id=? AND actor=?)"]),
        ({"actor": "a", "action": "x"}, ["ix_audit_actor (project_id=? AND actor=?)"]),
        ({"action": "x"}, ["ix_audit_action (project_id=? AND action=?)"]),
        ({"target": "t", "actor": "a", "action": "x"}, ["ix_audit_target (target=?)"]),
    ],
)
def test_audit_log_page_query_uses_single_index(sqlite: Database, values: dict[str, str], steps: list[str]) -> None:
    statement = select_rows("p", **values).order_by(Audit.at.desc(), Audit.id.desc())
    compiled = statement.compile(sqlite.engine, compile_kwargs={"literal_binds": True})

    with sqlite.read() as session:
        plan = [row[3] for row in session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")]

    sort = ["USE TEMP B-TREE FOR ORDER BY"] if "target" in values else []
    assert plan == [f"SEARCH audit USING INDEX {step}" for step in steps] + sort


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ({"after": "audit_log-0"}, "after", "invalid_cursor"),
        ({"actor": "x" * 97}, "actor", "string_above_max_length"),
        ({"type": "x" * 65}, "type", "string_above_max_length"),
        ({"since": "-1"}, "since", "integer_below_min_value"),
        ({"until": "soon"}, "until", "invalid_type"),
        ({"after": "5"}, "after", "invalid_cursor"),
        ({"after": "audit_log-" + "9" * 19}, "after", "invalid_cursor"),
        ({"limit": "0"}, "limit", "integer_below_min_value"),
        ({"target": "x" * 129}, "target", "string_above_max_length"),
    ],
)
def test_bad_queries_of_the_audit_log_are_refused(
    client: TestClient, query: dict[str, str], param: str, code: str
) -> None:
    refused = client.get("/v1/audit_logs", params=query)

    assert refused.status_code == 400
    assert (refused.json()["error"]["param"], refused.json()["error"]["code"]) == (param, code)


def test_new_key_has_the_scopes_name_and_end_that_are_given(app: FastAPI, client: TestClient) -> None:
    fields = {"name": "ci", "scopes": ["api.files.read"], "expires_in_seconds": 60}

    made = client.post("/v1/api_keys", json=fields).json()
    narrow = client_of(app, made["value"])

    assert (made["name"], made["scopes"], made["expires_at"] - made["created_at"]) == ("ci", ["api.files.read"], 60)
    assert (narrow.get("/v1/files").status_code, refusal(narrow.get("/v1/jobs"))) == (200, (403, "missing_scope"))


def test_narrow_key_that_manages_keys_grants_no_more_than_it_has(app: FastAPI) -> None:
    own = ["api.organization.projects.api_keys.write", "api.files.read"]
    with app.state.services.db.write() as session:
        manager = client_of(app, keys.create_key(session, "default", manages=True, scopes=own))

    inherited = manager.post("/v1/api_keys")
    narrower = manager.post("/v1/api_keys", json={"scopes": ["api.files.read"]})
    wider = [manager.post("/v1/api_keys", json={"scopes": [scope]}) for scope in ("api.files.write", "api.all.read")]

    assert inherited.json()["scopes"] == own
    assert narrower.json()["scopes"] == ["api.files.read"]
    assert {refusal(answer) for answer in wider} == {(403, "missing_scope")}
    assert "api.files.write" in wider[0].json()["error"]["message"]


def test_new_key_has_the_owner_of_its_creator(app: FastAPI, client: TestClient) -> None:
    made = client.post("/v1/api_keys").json()

    with app.state.services.db.write() as session:
        owners = {session.get_one(ApiKey, name).owner_id for name in (made["id"], made["created_by"])}
        session.get_one(ServiceAccount, owners.pop()).deleted_at = 1.0

    assert owners == set()
    assert client_of(app, made["value"]).get("/v1/files").status_code == 401
