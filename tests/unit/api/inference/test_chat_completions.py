"""Chat completions that are kept, in lists: page by page, by model, by metadata; changed, deleted, expired."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from jobs.clock import now
from jobs.inference import stored
from jobs.inference.tables import StoredCompletion
from jobs.ledger.tables import Audit
from tests.support.web import make_key, store_completion
from tests.unit.api.conftest import client_of

URL = "/v1/chat/completions"


@pytest.fixture
def asking(either: FastAPI) -> TestClient:
    return client_of(either, make_key(either))


def ids(client: TestClient, **query: Any) -> list[str]:
    answer = client.get(URL, params=query)
    assert answer.status_code == 200, answer.text
    page = answer.json()
    found = [one["id"] for one in page["data"]]
    assert (page["first_id"], page["last_id"]) == ((found[0], found[-1]) if found else (None, None))
    return found


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_list_each_completion_once_and_default_to_ascending_order(
    either: FastAPI, asking: TestClient, order: str
) -> None:
    made = [store_completion(either, created_at=float(n)) for n in range(5)]
    store_completion(either, "others")
    store_completion(either, expires_at=now() - 1)

    wanted = made if order == "asc" else made[::-1]
    assert ids(asking) == made
    assert ids(asking, order=order, limit=2) == wanted[:2]
    assert ids(asking, order=order, limit=2, after=wanted[1]) == wanted[2:4]
    last = asking.get(URL, params={"order": order, "limit": 2, "after": wanted[3]}).json()
    assert ([one["id"] for one in last["data"]], last["has_more"]) == (wanted[4:], False)


def test_a_model_is_looked_for_by_either_of_its_names(either: FastAPI, asking: TestClient) -> None:
    small = store_completion(either, requested_model="alias", model="small")
    large = store_completion(either, requested_model="large", model="large")

    assert [ids(asking, model=name) for name in ("alias", "small", "large", "none")] == [[small], [small], [large], []]


def test_metadata_selects_and_is_changed(either: FastAPI, asking: TestClient) -> None:
    blue = store_completion(either, metadata_={"team": "blue", 'a"b': "x"})
    red = store_completion(either, metadata_={"team": "red"}, created_at=now() + 1)
    bare = store_completion(either, created_at=now() + 2)

    assert ids(asking, **{"metadata[team]": "blue"}) == [blue]
    assert ids(asking, **{'metadata[a"b]': "x", "metadata[team]": "blue"}) == [blue]
    assert ids(asking, **{'metadata[a"b]': "x", "metadata[team]": "red"}) == []
    assert ids(asking, metadata="null") == [bare]
    changed = asking.post(f"{URL}/{red}", json={"metadata": {"team": "blue"}}).json()
    assert changed == asking.get(f"{URL}/{red}").json()
    assert changed["metadata"] == {"team": "blue"}
    assert ids(asking, **{"metadata[team]": "blue"}) == [blue, red]
    assert asking.post(f"{URL}/{red}", json={"metadata": None}).json()["metadata"] == {}
    assert ids(asking, metadata="null") == [red, bare]


def test_completion_that_no_longer_matches_filter_is_valid_cursor(either: FastAPI, asking: TestClient) -> None:
    made = [store_completion(either, metadata_={"team": "blue"}, created_at=float(n)) for n in range(3)]
    asking.post(f"{URL}/{made[0]}", json={"metadata": {}})

    assert ids(asking, **{"metadata[team]": "blue", "after": made[0]}) == made[1:]


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ({"after": "chatcmpl-none"}, "after", "invalid_cursor"),
        ({"limit": 0}, "limit", "integer_below_min_value"),
        ({"order": "up"}, "order", "invalid_value"),
    ],
)
def test_a_wrong_query_is_refused(asking: TestClient, query: dict[str, Any], param: str, code: str) -> None:
    error = asking.get(URL, params=query)

    assert (error.status_code, error.json()["error"]["param"], error.json()["error"]["code"]) == (400, param, code)


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "metadata"), ({"metadata": {"a": 1}}, "metadata.a"), ({"metadata": {}, "model": "m"}, "model")],
)
def test_a_wrong_change_is_refused_and_changes_nothing(
    either: FastAPI, asking: TestClient, body: dict[str, Any], param: str
) -> None:
    made = store_completion(either, metadata_={"team": "blue"})

    error = asking.post(f"{URL}/{made}", json=body)

    assert (error.status_code, error.json()["error"]["param"]) == (400, param)
    assert asking.get(f"{URL}/{made}").json()["metadata"] == {"team": "blue"}


def test_deleted_completion_loses_its_bytes_and_leaves_audit_row(either: FastAPI, asking: TestClient) -> None:
    made, other = store_completion(either), store_completion(either, created_at=now() + 1)

    gone = asking.delete(f"{URL}/{made}").json()

    assert gone == {"id": made, "object": "chat.completion.deleted", "deleted": True}
    assert ids(asking) == [other]
    assert either.state.services.storage.list("completions") == [stored.completion_path(other)]
    for call in (asking.get, asking.delete):
        answer = call(f"{URL}/{made}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "completion_id")
    assert asking.get(f"{URL}/{made}/messages").status_code == 404
    with either.state.services.db.read() as session:
        assert session.scalars(select(Audit.action).where(Audit.target == made)).all() == ["chat_completion.delete"]


def test_completion_deleted_during_read_is_absent_from_page(either: FastAPI, asking: TestClient) -> None:
    """Its row goes before its object: a page whose objects are missing is looked up anew."""
    made = [store_completion(either, created_at=float(n)) for n in range(3)]
    services = either.state.services
    services.storage.delete(stored.completion_path(made[1]))  # as another process does, between the row and the object

    assert ids(asking) == [made[0], made[2]]
    assert asking.get(f"{URL}/{made[1]}").status_code == 404


def test_expired_completion_is_not_found_before_retention_runs(either: FastAPI, asking: TestClient) -> None:
    made = store_completion(either)
    with either.state.services.db.write() as session:
        session.get_one(StoredCompletion, made).expires_at = now() - 1

    assert asking.get(f"{URL}/{made}").status_code == 404
    assert asking.post(f"{URL}/{made}", json={"metadata": {}}).status_code == 404
    assert ids(asking) == []


IMPORT: dict[str, Any] = {
    "imported_from": "chatcmpl-Far1",
    "request": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}], "store": True},
    "response": {
        "id": "chatcmpl-Far1",
        "model": "gpt-4o-mini-2024-07-18",
        "created": 1_700_000_000,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    },
    "metadata": {"team": "blue"},
}


def test_imported_completion_is_stored_once_and_answered_by_either_id(either: FastAPI, asking: TestClient) -> None:
    answers = [asking.post(f"{URL}/imports", json=IMPORT) for _ in range(2)]
    other = client_of(either, make_key(either, "other"))

    assert [answer.status_code for answer in answers] == [201, 201], answers[0].text
    first, second = (answer.json() for answer in answers)
    assert first == second
    assert (first["imported_from"], first["created"], first["metadata"]) == (
        "chatcmpl-Far1",
        1_700_000_000,
        {"team": "blue"},
    )
    assert first["id"] != "chatcmpl-Far1"
    assert ids(asking) == ids(asking, model="gpt-4o-mini") == [first["id"]]
    assert [asking.get(f"{URL}/{name}").json() for name in (first["id"], "chatcmpl-Far1")] == [first] * 2
    (message,) = asking.get(f"{URL}/chatcmpl-Far1/messages").json()["data"]
    assert message["content"] == "Hello"
    assert other.get(f"{URL}/chatcmpl-Far1").status_code == 404
    assert other.post(f"{URL}/imports", json=IMPORT).json()["id"] != first["id"]
    assert asking.delete(f"{URL}/chatcmpl-Far1").json()["id"] == first["id"]
    assert ids(asking) == []
    assert asking.post(f"{URL}/imports", json=IMPORT).json() == first


def test_imported_completion_keeps_its_time_and_expires_from_now(either: FastAPI, asking: TestClient) -> None:
    imported = asking.post(f"{URL}/imports", json=IMPORT).json()["id"]
    with either.state.services.db.read() as session:
        row = session.get_one(StoredCompletion, imported)
        assert row.created_at == 1_700_000_000
        assert row.expires_at > now()


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"imported_from": ""}, "imported_from"),
        ({"request": {"model": "m"}}, "request"),
        ({"request": {"messages": [{"role": "user"}]}}, "request"),
        ({"response": {"choices": []}}, "response"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"surplus": 1}, "surplus"),
    ],
)
def test_invalid_import_is_refused_and_stores_nothing(asking: TestClient, changes: dict[str, Any], param: str) -> None:
    answer = asking.post(f"{URL}/imports", json=IMPORT | changes)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert ids(asking) == []
