"""The feed of a project: pages by position, and a stream that goes on where another one broke."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.jobs import streams as job_streams
from api.ttl_cache import Trusted
from jobs.clock import now
from jobs.errors import DatabaseBusy
from jobs.known_kinds import EVENT_TYPES
from jobs.ledger import feed
from jobs.ledger.states import JobState
from jobs.security.keys import revoke_key
from tests.support import worker_steps
from tests.support.system import eventually
from tests.support.web import hurry, make_key, serve
from tests.unit.api.batches.test_batches import create
from tests.unit.api.conftest import client_of

GUIDE = (Path(__file__).parents[4] / "docs/guides/events.md").read_text()
SSE = {"Accept": "text/event-stream"}


def number(app: FastAPI) -> None:
    with app.state.services.db.write() as session:
        feed.number(session)


def ended(app: FastAPI, client: TestClient) -> str:
    """Return the id of a batch that has ended; its events are numbered."""
    job_id: str = create(client)["id"]
    worker_steps.run(app.state.services.db, app.state.services.storage, job_id, 1)
    number(app)
    return job_id


def read(client: TestClient, **query: Any) -> dict[str, Any]:
    answer = client.get("/v1/events", params=query)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


def refusal(client: TestClient, **query: Any) -> tuple[int, str]:
    answer = client.get("/v1/events", params=query)
    return answer.status_code, answer.json()["error"]["code"]


def test_the_feed_tells_all_that_happened_in_pages(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    job_ids = [ended(either, client), ended(either, client)]

    whole = read(client)
    pages = [read(client, limit=5)]
    pages.append(read(client, limit=5, after=pages[0]["last_position"]))

    assert [event["position"] for event in whole["data"]] == list(range(1, 9))
    assert [event["subject_id"] for event in whole["data"]] == [job_ids[0]] * 4 + [job_ids[1]] * 4
    assert [event["type"] for event in whole["data"][:4]] == [
        "job.created",
        "job.running",
        "job.finishing",
        "batch.completed",
    ]
    last = whole["data"][-1]
    assert (last["object"], last["data"], last["seq"]) == ("event", {"id": job_ids[1]}, 4)
    assert [page["has_more"] for page in pages] == [True, False]
    assert [*pages[0]["data"], *pages[1]["data"]] == whole["data"]


def test_an_event_without_a_position_is_not_there_yet(app: FastAPI, client: TestClient) -> None:
    create(client)

    before = read(client)
    number(app)

    assert before == {"object": "list", "data": [], "last_position": 0, "has_more": False}
    assert [event["type"] for event in read(client)["data"]] == ["job.created"]


def test_another_project_has_a_feed_of_its_own(app: FastAPI, client: TestClient, stranger: TestClient) -> None:
    ended(app, client)

    assert read(stranger)["data"] == []
    assert refusal(stranger, after=1) == (400, "invalid_cursor")


def test_the_latest_position_is_where_a_reader_of_the_new_begins(app: FastAPI, client: TestClient) -> None:
    ended(app, client)

    latest = read(client, after="latest")
    job_id = create(client)["id"]
    number(app)

    assert (latest["data"], latest["last_position"]) == ([], 4)
    assert [event["subject_id"] for event in read(client, after=latest["last_position"])["data"]] == [job_id]


def test_a_position_that_is_not_there_yet_is_refused(app: FastAPI, client: TestClient) -> None:
    ended(app, client)

    assert read(client, after=4)["data"] == []
    assert refusal(client, after=5) == (400, "invalid_cursor")
    assert [refusal(client, after=bad)[0] for bad in ("x", -1, "", 1 << 80, 1.5)] == [400] * 5


def test_position_before_removed_events_returns_410(app: FastAPI, client: TestClient) -> None:
    ended(app, client)
    with app.state.services.db.write() as session:
        feed.forget(session, feed.forgettable(session, now() + 1, 2), now() + 1)

    left = read(client)

    assert [event["position"] for event in left["data"]] == [3, 4]
    assert refusal(client, after=1) == (410, "events_removed")
    assert client.get("/v1/events", headers={**SSE, "Last-Event-ID": "1"}).status_code == 410
    assert read(client, after=2) == left


@pytest.fixture
def streams(app: FastAPI) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the URL of the app, and the headers of a client."""
    hurry(app, job_look=0.01)
    with serve(app) as url:
        yield url, {"Authorization": f"Bearer {make_key(app)}", **SSE}


def events_of(answer: httpx2.Response, count: int) -> list[tuple[int, str, dict[str, Any]]]:
    """Return the first events of a stream: id, name, data."""
    found, fields = [], dict[str, str]()
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if name in ("id", "event", "data"):
            fields[name] = value
        if not line and fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
            fields = {}
        if len(found) == count:
            break
    return found


def test_stream_sends_events_and_resumes_after_last_event_id(
    app: FastAPI, client: TestClient, streams: tuple[str, dict[str, str]]
) -> None:
    url, headers = streams
    ended(app, client)

    with httpx2.stream("GET", f"{url}/v1/events", headers=headers, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        first = events_of(answer, 3)
    with httpx2.stream("GET", f"{url}/v1/events", headers={**headers, "Last-Event-ID": "3"}, timeout=30) as answer:
        job_id = ended(app, client)
        rest = events_of(answer, 5)

    told = [*first, *rest]
    assert [position for position, _, _ in told] == list(range(1, 9))
    assert [name for _, name, _ in told] == [event["type"] for _, _, event in told]
    assert [event for _, _, event in told] == read(client)["data"]
    assert told[-1][2]["data"] == {"id": job_id}


@pytest.mark.parametrize("path", ["/v1/events", "/v1/jobs/{job_id}/events"])
def test_a_look_that_fails_at_its_end_loses_no_event(
    app: FastAPI, client: TestClient, streams: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    url, headers = streams
    job_id = ended(app, client)
    look, failures = job_streams._look, iter([DatabaseBusy()])

    async def look_and_fail(*given: Any) -> Any:
        found = await look(*given)
        if error := next(failures, None):
            raise error
        return found

    monkeypatch.setattr(job_streams, "_look", look_and_fail)
    with httpx2.stream("GET", url + path.format(job_id=job_id), headers=headers, timeout=30) as answer:
        found = events_of(answer, 4)

    assert [number for number, _, _ in found] == [1, 2, 3, 4]


def test_stream_after_latest_begins_with_next_event(
    app: FastAPI, client: TestClient, streams: tuple[str, dict[str, str]]
) -> None:
    url, headers = streams
    ended(app, client)

    with httpx2.stream("GET", f"{url}/v1/events?after=latest", headers=headers, timeout=30) as answer:
        ended(app, client)
        found = events_of(answer, 1)

    assert [position for position, _, _ in found] == [5]


def test_stream_queries_events_only_after_feed_has_advanced(
    app: FastAPI, client: TestClient, streams: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, headers = streams
    app.state.services.feed_bounds = Trusted[feed.FeedBounds](0.01)
    look, bounds, looks, queries = job_streams._look, feed.bounds, [], []

    async def look_and_count(*given: Any) -> Any:
        looks.append(given)
        return await look(*given)

    def count_queries(*given: Any) -> feed.FeedBounds:
        queries.append(given)
        return bounds(*given)

    monkeypatch.setattr(job_streams, "_look", look_and_count)
    monkeypatch.setattr(feed, "bounds", count_queries)
    with httpx2.stream("GET", f"{url}/v1/events?after=latest", headers=headers, timeout=30) as answer:
        eventually(lambda: len(queries) > 20, 30, "the bounds of the feed are queried")
        looks_while_idle = len(looks)
        ended(app, client)
        found = events_of(answer, 4)

    assert looks_while_idle == 0
    assert [position for position, _, _ in found] == [1, 2, 3, 4]


def test_a_project_has_a_bounded_number_of_streams(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(project_streams=2)
    mine, other = ({"Authorization": f"Bearer {make_key(app, name)}", **SSE} for name in ("default", "another"))
    job = create(client_of(app, mine["Authorization"][7:]))["id"]
    with serve(app) as url:
        for _ in range(3):  # those that were left are closed
            with (
                httpx2.stream("GET", f"{url}/v1/events", headers=mine, timeout=30) as one,
                httpx2.stream("GET", f"{url}/v1/jobs/{job}/events", headers=mine, timeout=30) as two,
                httpx2.stream("GET", f"{url}/v1/events", headers=other, timeout=30) as free,
            ):
                third = [
                    httpx2.get(f"{url}/v1/{path}", headers=mine, timeout=30)
                    for path in ("events", f"jobs/{job}/results")
                ]
                page = httpx2.get(f"{url}/v1/events", headers={**mine, "Accept": "application/json"}, timeout=30)
            assert [answer.status_code for answer in (one, two, free, page)] == [200] * 4
            assert [answer.status_code for answer in third] == [429] * 2
            assert third[0].headers["retry-after"] == "1"
            _until_free(url, mine)


def _until_free(url: str, headers: dict[str, str]) -> None:
    """Wait until the server notices that a client has left."""
    for _ in range(300):
        with (
            httpx2.stream("GET", f"{url}/v1/events", headers=headers, timeout=30) as one,
            httpx2.stream("GET", f"{url}/v1/events", headers=headers, timeout=30) as two,
        ):
            if {one.status_code, two.status_code} == {200}:
                return
    raise AssertionError("the streams that were closed still count")


def test_stream_ends_after_key_revocation(app: FastAPI, streams: tuple[str, dict[str, str]]) -> None:
    url, headers = streams

    with httpx2.stream("GET", f"{url}/v1/events", headers=headers, timeout=30) as answer:
        with app.state.services.db.write() as session:
            revoke_key(session, headers["Authorization"].split("_")[1])
        assert events_of(answer, 1) == []


def test_openapi_document_describes_event_pages_streams_and_410(app: FastAPI) -> None:
    responses = app.openapi()["paths"]["/v1/events"]["get"]["responses"]

    assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "410" in responses


def test_the_guide_names_every_type_of_event() -> None:
    types = {*EVENT_TYPES, "job.created", *(f"job.{state}" for state in JobState if state != JobState.QUEUED)}

    assert {kind for kind in types if f"`{kind}`" not in GUIDE} == set()
