"""Webhook endpoints: made, shown without their secret, tested, followed and replayed."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, update
from standardwebhooks import Webhook

from api.webhooks import routes as webhook_endpoints
from jobs.clock import now
from jobs.known_kinds import EVENT_TYPES
from jobs.security.tables import Project
from jobs.webhooks.deliveries import PARKED_UNTIL
from jobs.webhooks.sending import signing_secrets
from jobs.webhooks.tables import Attempt, Delivery, WebhookEndpoint
from tests.support import worker_steps
from tests.support.databases import until_waiting
from tests.support.web import make_key, running_app
from tests.unit.api.batches.test_batches import create as create_batch
from tests.unit.api.conftest import client_of

GOOD = {"name": "n", "url": "https://192.0.43.8/hook", "event_types": ["batch.completed"]}


def create(client: TestClient, **changes: Any) -> dict[str, Any]:
    answer = client.post("/v1/webhook_endpoints", json=GOOD | changes)
    assert answer.status_code == 200, answer.text
    endpoint: dict[str, Any] = answer.json()
    return endpoint


@pytest.fixture
def app(make_app: Callable[..., FastAPI]) -> FastAPI:
    return make_app(webhook_allow_private=True, webhook_timeout_seconds=2)


def test_the_secret_is_shown_once(client: TestClient) -> None:
    made = create(client)

    shown = client.get(f"/v1/webhook_endpoints/{made['id']}").json()

    secret = made.pop("signing_secret")
    assert secret.startswith("whsec_")
    assert shown == made
    assert shown["signing_secret_hint"] == f"…{secret[-4:]}"
    assert secret not in client.get("/v1/webhook_endpoints").text


@pytest.mark.postgres
def test_concurrent_creates_do_not_exceed_endpoint_limit(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_endpoints, "_MAX_ENDPOINTS", 1)
    with running_app(tmp_path, postgres_url) as app, ThreadPoolExecutor(2) as pool:
        client, db = client_of(app, make_key(app)), app.state.services.db
        with db.write() as session:
            session.scalars(select(Project).with_for_update(key_share=True)).all()
            asked = [pool.submit(client.post, "/v1/webhook_endpoints", json=GOOD) for _ in range(2)]
            until_waiting(db, 2)

        answers = sorted((one.result(timeout=30) for one in asked), key=lambda answer: int(answer.status_code))
    assert [answer.status_code for answer in answers] == [200, 409]
    assert answers[1].json()["error"]["code"] == "too_many_endpoints"


def test_an_endpoint_is_listed_changed_and_deleted(client: TestClient) -> None:
    made = create(client)

    changed = client.post(f"/v1/webhook_endpoints/{made['id']}", json={"name": "m", "event_types": ["batch.failed"]})
    listed = client.get("/v1/webhook_endpoints").json()["data"]
    deleted = client.delete(f"/v1/webhook_endpoints/{made['id']}").json()

    assert (changed.json()["name"], changed.json()["event_types"]) == ("m", ["batch.failed"])
    assert changed.json()["url"] == made["url"]
    assert listed == [changed.json()]
    assert deleted == {"id": made["id"], "object": "webhook_endpoint.deleted", "deleted": True}
    assert client.get(f"/v1/webhook_endpoints/{made['id']}").status_code == 404


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"event_types": []}, "event_types"),
        ({"event_types": ["nothing.happened"]}, "event_types[0]"),
        ({"event_types": "batch.completed"}, "event_types"),
        ({"name": ""}, "name"),
        ({"url": "ftp://example.com/x"}, "url"),
        ({"url": "https://user:password@example.com/"}, "url"),
        ({"url": "https://example.com/" + "x" * 3000}, "url"),
        ({"url": "https://169.254.169.254/latest"}, "url"),
    ],
)
def test_a_bad_endpoint_is_refused_by_create_and_update(client: TestClient, change: dict[str, Any], param: str) -> None:
    made = create(client)

    answers = [
        client.post("/v1/webhook_endpoints", json=GOOD | change),
        client.post(f"/v1/webhook_endpoints/{made['id']}", json=change),
    ]

    assert [(answer.status_code, answer.json()["error"]["param"]) for answer in answers] == [(400, param)] * 2
    assert len(client.get("/v1/webhook_endpoints").json()["data"]) == 1


@pytest.mark.parametrize(
    "url",
    ["http://example.com/", "https://127.0.0.1/", "https://[::1]/", "https://10.0.0.1/", "https://example.com:22/"],
)
def test_private_addresses_are_refused_by_default(make_app: Callable[..., FastAPI], url: str) -> None:
    app = make_app()
    client = client_of(app, make_key(app))

    error = client.post("/v1/webhook_endpoints", json=GOOD | {"url": url}).json()["error"]

    assert (error["param"], error["code"]) == ("url", "invalid_url")


def test_rotation_keeps_old_secret_active_for_24_hours_only_on_request(app: FastAPI, client: TestClient) -> None:
    made = create(client)
    path = f"/v1/webhook_endpoints/{made['id']}/rotate_secret"

    kept = client.post(path, json={"keep_old_secret_active_for_24_hours": True}).json()
    with app.state.services.db.read() as session:
        row = session.get_one(WebhookEndpoint, made["id"])
        assert (row.secret, row.old_secret) == (kept["signing_secret"], made["signing_secret"])
        assert row.old_secret_until - row.updated_at == pytest.approx(86_400, abs=1)
    dropped = client.post(path).json()
    with app.state.services.db.read() as session:
        row = session.get_one(WebhookEndpoint, made["id"])
        assert (row.secret, row.old_secret) == (dropped["signing_secret"], None)


def signing(app: FastAPI, endpoint_id: str, in_seconds: float = 0) -> tuple[str, ...]:
    with app.state.services.db.read() as session:
        return signing_secrets(session.get_one(WebhookEndpoint, endpoint_id), now() + in_seconds)


def test_a_secret_that_is_rotated_twice_still_signs_for_the_day_it_was_promised(
    app: FastAPI, client: TestClient
) -> None:
    made = create(client)
    path = f"/v1/webhook_endpoints/{made['id']}/rotate_secret"
    keep = {"keep_old_secret_active_for_24_hours": True}

    lost, kept = (client.post(path, json=keep).json()["signing_secret"] for _ in range(2))

    assert signing(app, made["id"]) == (kept, lost, made["signing_secret"])
    assert signing(app, made["id"], 86_401) == (kept,)
    dropped = client.post(path).json()["signing_secret"]
    assert signing(app, made["id"]) == (dropped,)


def test_repeated_rotation_with_same_key_returns_first_answer(app: FastAPI, client: TestClient) -> None:
    made = create(client)
    path = f"/v1/webhook_endpoints/{made['id']}/rotate_secret"
    keep = {"keep_old_secret_active_for_24_hours": True}

    first, again = (client.post(path, json=keep, headers={"Idempotency-Key": "k"}) for _ in range(2))

    assert first.json() == again.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert signing(app, made["id"]) == (first.json()["signing_secret"], made["signing_secret"])


def test_old_secrets_that_sign_are_bounded(app: FastAPI, client: TestClient) -> None:
    made = create(client)
    path = f"/v1/webhook_endpoints/{made['id']}/rotate_secret"
    keep = {"keep_old_secret_active_for_24_hours": True}

    statuses = [client.post(path, json=keep).status_code for _ in range(21)]
    before = signing(app, made["id"])

    assert statuses == [200] * 20 + [409]
    assert client.post(path, json=keep).json()["error"]["code"] == "too_many_secrets"
    assert (len(before), before[-1]) == (21, made["signing_secret"])
    assert signing(app, made["id"]) == before
    assert client.post(path).status_code == 200


@pytest.fixture
def receiver() -> Iterator[Any]:
    """Yield a receiver that stores its requests and answers with `status`."""
    got: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        status = 204

        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            got.append((headers, self.rfile.read(int(headers["content-length"]))))
            self.send_response(self.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.got, server.handler = got, Handler  # type: ignore[attr-defined]
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_test_event_is_signed_and_receiver_status_is_returned(client: TestClient, receiver: Any) -> None:
    made = create(client, url=f"http://127.0.0.1:{receiver.server_port}/x")
    path = f"/v1/webhook_endpoints/{made['id']}/test"

    good = client.post(path, json={"event_type": "batch.expired"}).json()
    receiver.handler.status = 500
    bad = client.post(path, json={"event_type": "batch.expired"}).json()

    assert good == {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": made["id"],
        "event_type": "batch.expired",
        "status_code": 204,
        "success": True,
    }
    assert (bad["status_code"], bad["success"]) == (500, True)  # it was sent
    headers, body = receiver.got[0]
    event = Webhook(made["signing_secret"]).verify(body, headers)
    assert (event["object"], event["type"]) == ("event", "batch.expired")


@pytest.mark.parametrize(
    ("event_type", "begins"),
    [
        ("batch.completed", {"id": "batch_"}),
        ("response.failed", {"id": "resp_"}),
        ("vector_store.file_batch.cancelled", {"id": "vsfb_"}),
        ("vector_store.file.completed", {"id": "file-", "vector_store_id": "vs_"}),
        ("vector_store.source.synced", {"id": "vss_", "vector_store_id": "vs_"}),
        ("fine_tuning.job.succeeded", {"id": "ftjob-"}),
        ("webhook_endpoint.disabled", {"id": "we_"}),
    ],
)
def test_a_test_event_looks_like_those_of_its_type(
    client: TestClient, receiver: Any, event_type: str, begins: dict[str, str]
) -> None:
    made = create(client, url=f"http://127.0.0.1:{receiver.server_port}/x")

    client.post(f"/v1/webhook_endpoints/{made['id']}/test", json={"event_type": event_type})

    event = Webhook(made["signing_secret"]).verify(receiver.got[0][1], receiver.got[0][0])
    assert {name: value.split("test_")[0] for name, value in event["data"].items()} == begins


def test_every_type_of_event_can_be_tested(client: TestClient, receiver: Any) -> None:
    path = f"/v1/webhook_endpoints/{create(client, url=f'http://127.0.0.1:{receiver.server_port}/x')['id']}/test"

    for event_type in EVENT_TYPES:
        assert client.post(path, json={"event_type": event_type}).status_code == 200, event_type
    assert client.post(path, json={"event_type": "batch.begun"}).status_code == 400


def test_updated_at_moves_only_on_actual_change(app: FastAPI, client: TestClient) -> None:
    made = create(client)
    with app.state.services.db.write() as session:
        session.get_one(WebhookEndpoint, made["id"]).created_at -= 100
    path = f"/v1/webhook_endpoints/{made['id']}"

    same = client.post(path, json={"name": made["name"], "event_types": made["event_types"] * 2}).json()
    other = client.post(path, json={"name": "other"}).json()

    assert made["updated_at"] == made["created_at"]
    assert same["updated_at"] == same["created_at"] == made["created_at"] - 100
    assert other["updated_at"] >= made["created_at"]


def test_a_receiver_that_is_not_there_is_a_clear_error(client: TestClient) -> None:
    made = create(client, url="http://127.0.0.1:1/x")

    answer = client.post(f"/v1/webhook_endpoints/{made['id']}/test", json={"event_type": "batch.failed"})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "webhook_not_delivered"


@pytest.fixture
def pending(app: FastAPI, client: TestClient) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Create an endpoint with a log of two deliveries."""
    endpoint = create(client)
    for _ in range(2):
        worker_steps.run(app.state.services.db, app.state.services.storage, create_batch(client, "f")["id"], 1)
    log = client.get(f"/v1/webhook_endpoints/{endpoint['id']}/deliveries").json()["data"]
    return endpoint, log


def test_a_job_s_own_webhook_has_its_log_at_the_job(app: FastAPI, client: TestClient, pending: Any) -> None:
    job_id = create_batch(client, "f", webhook={"url": "https://192.0.43.8/once"})["id"]
    worker_steps.run(app.state.services.db, app.state.services.storage, job_id, 1)

    log = client.get(f"/v1/jobs/{job_id}/deliveries").json()["data"]

    assert [(one["webhook_endpoint_id"], one["event_type"]) for one in log] == [(None, "batch.completed")]


def test_delivery_to_job_webhook_can_be_replayed(
    app: FastAPI, client: TestClient, stranger: TestClient, pending: Any
) -> None:
    job_id = create_batch(client, "f", webhook={"url": "https://192.0.43.8/once"})["id"]
    worker_steps.run(app.state.services.db, app.state.services.storage, job_id, 1)
    delivery = client.get(f"/v1/jobs/{job_id}/deliveries").json()["data"][0]["id"]
    fail(app, delivery)

    again = client.post(f"/v1/jobs/{job_id}/deliveries/{delivery}/replay").json()

    assert (again["id"], again["state"], len(again["attempts"])) == (delivery, "pending", 1)
    assert again["next_attempt_at"] is not None
    assert client.get(f"/v1/jobs/{job_id}/deliveries").json()["data"] == [again]
    assert stranger.post(f"/v1/jobs/{job_id}/deliveries/{delivery}/replay").status_code == 404
    for other in (pending[1][0]["id"], "wh_none"):
        refused = client.post(f"/v1/jobs/{job_id}/deliveries/{other}/replay")
        assert (refused.status_code, refused.json()["error"]["param"]) == (404, "delivery_id")


def fail(app: FastAPI, delivery_id: str) -> None:
    with app.state.services.db.write() as session:
        row = session.get_one(Delivery, delivery_id)
        row.state, row.attempts, row.status_code, row.error = "failed", 3, 500, "status 500"
        session.add(Attempt(delivery_id=delivery_id, n=1, at=1.0, seconds=0.25, status_code=500, error="status 500"))


def test_the_log_shows_each_delivery_with_its_attempts(app: FastAPI, client: TestClient, pending: Any) -> None:
    endpoint, log = pending
    fail(app, log[0]["id"])
    path = f"/v1/webhook_endpoints/{endpoint['id']}/deliveries"

    failed = client.get(path, params={"state": "failed"}).json()["data"]
    second = client.get(path, params={"after": log[0]["id"]}).json()["data"]

    assert [one["event_type"] for one in log] == ["batch.completed"] * 2
    assert [(one["state"], one["attempts"]) for one in log] == [("pending", [])] * 2
    assert [one["id"] for one in second] == [log[1]["id"]]
    assert failed[0]["attempts"] == [{"n": 1, "at": 1, "seconds": 0.25, "status_code": 500, "error": "status 500"}]
    assert failed[0]["next_attempt_at"] is None


def test_pages_of_the_log_by_state_go_on_after_a_delivery_that_left_that_state(
    app: FastAPI, client: TestClient, pending: Any
) -> None:
    endpoint, log = pending
    path, page = f"/v1/webhook_endpoints/{endpoint['id']}/deliveries", {"state": "pending", "limit": "1"}
    assert [one["id"] for one in client.get(path, params=page).json()["data"]] == [log[0]["id"]]

    fail(app, log[0]["id"])

    second = client.get(path, params={**page, "after": log[0]["id"]})
    assert [one["id"] for one in second.json()["data"]] == [log[1]["id"]]
    foreign = client.get(f"/v1/webhook_endpoints/{create(client)['id']}/deliveries", params={"after": log[0]["id"]})
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (400, "invalid_cursor")


@pytest.mark.parametrize("by", ["delivery_ids", "event_id", "failed_since", "since"])
def test_failed_delivery_is_replayed_by_each_selector(app: FastAPI, client: TestClient, pending: Any, by: str) -> None:
    endpoint, log = pending
    fail(app, log[0]["id"])
    body = {
        "delivery_ids": {"delivery_ids": [log[0]["id"]]},
        "event_id": {"event_id": log[0]["event_id"]},
        "failed_since": {"failed_since": 0},
        "since": {"since": 0, "until": 1e11},
    }[by]

    answer = client.post(f"/v1/webhook_endpoints/{endpoint['id']}/replay", json=body).json()

    assert answer["delivery_ids"] == [log[0]["id"]]
    assert answer["has_more"] is False
    states = client.get(f"/v1/webhook_endpoints/{endpoint['id']}/deliveries").json()["data"]
    assert [one["state"] for one in states] == ["pending", "pending"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"failed_since": 0, "since": 0}, 400),
        ({"delivery_ids": []}, 400),
        ({"delivery_ids": ["wh_unknown"]}, 404),
        ({"event_id": "evt_unknown"}, 404),
        ({"since": "yesterday"}, 400),
    ],
)
def test_a_replay_that_names_nothing_is_refused(
    client: TestClient, pending: Any, body: dict[str, Any], status: int
) -> None:
    assert client.post(f"/v1/webhook_endpoints/{pending[0]['id']}/replay", json=body).status_code == status


def test_a_disabled_endpoint_says_so_and_an_update_enables_it(app: FastAPI, client: TestClient) -> None:
    made = create(client)
    with app.state.services.db.write() as session:
        row = session.get_one(WebhookEndpoint, made["id"])
        row.disabled_at, row.disabled_reason = 5.0, "gone"

    shown = client.get(f"/v1/webhook_endpoints/{made['id']}").json()
    replayed = client.post(f"/v1/webhook_endpoints/{made['id']}/replay", json={"failed_since": 0})
    updated = client.post(f"/v1/webhook_endpoints/{made['id']}", json={}).json()

    assert (shown["disabled_at"], shown["disabled_reason"]) == (5, "gone")
    assert replayed.status_code == 409
    assert (updated["disabled_at"], updated["disabled_reason"]) == (None, None)


def test_parked_deliveries_become_due_after_endpoint_is_enabled(
    app: FastAPI, client: TestClient, pending: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_endpoints, "WRITE_ROWS", 1)
    monkeypatch.setattr("jobs.webhooks.webhook_endpoints.WRITE_ROWS", 1)
    with app.state.services.db.write() as session:
        session.execute(update(Delivery).values(due_at=PARKED_UNTIL))
        session.execute(update(WebhookEndpoint).values(disabled_at=5, disabled_reason="gone"))

    assert client.post(f"/v1/webhook_endpoints/{pending[0]['id']}", json={}).status_code == 200

    with app.state.services.db.read() as session:
        due = session.scalars(select(Delivery.due_at)).all()
    assert len(due) == 2
    assert max(due) <= now()


def test_an_endpoint_that_is_deleted_while_it_is_disabled_has_nothing_pending_any_more(
    app: FastAPI, client: TestClient, pending: Any
) -> None:
    with app.state.services.db.write() as session:
        session.execute(update(Delivery).values(due_at=PARKED_UNTIL))

    assert client.delete(f"/v1/webhook_endpoints/{pending[0]['id']}").status_code == 200

    with app.state.services.db.read() as session:
        rows = session.execute(select(Delivery.state, Delivery.error)).all()
    assert [tuple(row) for row in rows] == [("failed", "endpoint deleted")] * 2


def test_endpoint_accepts_openai_only_event_types_without_test_events(client: TestClient) -> None:
    wanted = [*EVENT_TYPES, *webhook_endpoints.ELSEWHERE_TYPES]
    made = create(client, event_types=wanted)
    tested = client.post(f"/v1/webhook_endpoints/{made['id']}/test", json={"event_type": "video.completed"})

    assert made["event_types"] == wanted
    assert tested.status_code == 400


def test_the_event_types_are_listed(client: TestClient) -> None:
    listed = client.get("/v1/webhook_event_types").json()

    assert listed["object"] == "list"
    assert {"batch.completed", "batch.failed", "batch.expired", "batch.cancelled"} <= set(listed["data"])
