"""Jobs: found by what they are, followed while they run, tried again when they failed."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.batches.schemas import STATUS
from api.jobs.schemas import StateOrStatus
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Segment, Shard
from jobs.security.keys import create_key
from jobs.security.tables import ApiKey
from jobs.timings import Timings
from tests.support import worker_steps
from tests.support.web import make_key
from tests.unit.api.batches.test_batches import create, upload
from tests.unit.api.conftest import client_of

SSE = {"Accept": "text/event-stream"}


def services(app: FastAPI) -> tuple[Any, Any]:
    return app.state.services.db, app.state.services.storage


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["data"]]


def test_jobs_are_found_by_kind_state_and_metadata(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    odd = 'a"b]$.*'
    first = create(client, "f", metadata={"team": "blue", odd: "1"})["id"]
    second = create(client, "f", endpoint="/v1/completions", metadata={"team": "red"})["id"]
    third = create(client, "f")["id"]
    worker_steps.fail(either.state.services.db, third, [])

    def find(**query: str) -> list[str]:
        return ids(client.get("/v1/jobs", params=query))

    assert find() == [third, second, first]
    assert find(order="asc") == [first, second, third]
    assert find(kind="generation") == [second]
    assert find(kind="nothing") == []
    assert find(state="queued") == [second, first]
    assert find(state="failed") == [third]
    assert find(state="validating") == [second, first], "OpenAI's word for it"
    assert find(state="in_progress") == find(state="completed") == []
    refused = client.get("/v1/jobs", params={"state": "odd"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "state")
    assert find(**{"metadata[team]": "blue"}) == [first]
    assert find(**{f"metadata[{odd}]": "1"}) == [first]
    assert find(**{"metadata[team]": "blue", "kind": "generation"}) == []
    assert find(**{"metadata[nothing]": "blue"}) == []
    assert find(metadata="null") == [third]
    assert find(limit="1", after=third) == [second]


def test_job_name_comes_from_metadata_suffix_or_own_input_file(either: FastAPI) -> None:
    client, stranger = (client_of(either, make_key(either, project)) for project in ("default", "other"))
    theirs = upload(stranger)
    named = create(client, metadata={"name": "nightly"})["id"]
    by_file, foreign, nameless = create(client)["id"], create(client, theirs)["id"], create(client, "f")["id"]
    tuned = create(client)["id"]
    with either.state.services.db.write() as session:
        job = session.get_one(Job, tuned)
        job.payload = {**job.payload, "suffix": "support"}

    listed = {job["id"]: job["name"] for job in client.get("/v1/jobs").json()["data"]}

    assert listed == {named: "nightly", by_file: "a.jsonl", foreign: None, nameless: None, tuned: "support"}
    assert [client.get(f"/v1/jobs/{job_id}").json()["name"] for job_id in listed] == list(listed.values())


def test_jobs_are_found_by_model_and_by_the_time_of_their_creation(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    old, new = create(client, "f")["id"], create(client, "f")["id"]
    worker_steps.plan(either.state.services.db, new, 1, "m/1")
    with either.state.services.db.write() as session:
        session.get_one(Job, old).created_at = 1_000_000.5

    def find(**query: str | int) -> list[str]:
        return ids(client.get("/v1/jobs", params=query))

    assert find(model="m/1") == [new]
    assert find(model="m") == []
    assert find(until=1_000_001) == find(since=1_000_000, until=1_000_001) == [old]
    assert find(since=1_000_001) == [new]
    assert find(until=1_000_000) == []
    for name, value in (("since", "-1"), ("until", "soon"), ("until", str(1 << 40)), ("model", "m" * 256)):
        refused = client.get("/v1/jobs", params={name: value})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)


def test_the_shards_of_a_job_are_summed_to_as_many_parts_as_are_requested(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    job_id = create(client, "f")["id"]
    path = f"/v1/jobs/{job_id}/shards"
    assert client.get(path).json() == {"object": "job.shards", "job_id": job_id, "shards": 0, "data": []}
    states = ["done", "done", "running", "pending", "pending"]
    with either.state.services.db.write() as session:
        for n, state in enumerate(states):
            done = {"done": 10, "running": 4}.get(state, 0)
            columns = {"lines": 10, "offset": n, "length": 1, "done": done, "failed": n if done else 0}
            session.add(Shard(job_id=job_id, n=n, first_line=10 * n, state=state, **columns))

    each, three, whole = (client.get(path, params={"parts": parts}).json() for parts in (5, 3, 1))

    names = ("first_line", "lines", "done", "failed", "shards", "running", "ended")
    assert each["shards"] == three["shards"] == 5
    assert [part["first_line"] for part in each["data"]] == [0, 10, 20, 30, 40]
    assert [part["done"] for part in each["data"]] == [10, 10, 4, 0, 0]
    assert [tuple(part[name] for name in names) for part in three["data"]] == [
        (0, 20, 20, 1, 2, 0, 2),
        (20, 20, 4, 2, 2, 1, 0),
        (40, 10, 0, 0, 1, 0, 0),
    ]
    assert [tuple(part[name] for name in names) for part in whole["data"]] == [(0, 50, 24, 3, 5, 1, 2)]
    for parts in ("0", "1001", "x"):
        assert client.get(path, params={"parts": parts}).json()["error"]["param"] == "parts"
    assert client.get("/v1/jobs/batch_none/shards").status_code == 404


def test_jobs_are_found_by_input_output_or_error_file(either: FastAPI) -> None:
    client, stranger = (client_of(either, make_key(either, project)) for project in ("default", "other"))
    file_id = upload(client)
    reader, other = create(client, file_id)["id"], create(client)["id"]
    with either.state.services.db.write() as session:
        job = session.get_one(Job, other)
        job.output_file_id, job.error_file_id, job.model = "file-written", "file-errors", "m"

    def find(browser: TestClient, file: str, **query: str) -> list[str]:
        return ids(browser.get("/v1/jobs", params={"file_id": file, **query}))

    assert find(client, file_id) == [reader]
    assert find(client, "file-written") == find(client, "file-errors") == [other]
    assert find(client, "file-errors", model="m", kind="embedding", state="queued") == [other]
    assert find(client, file_id, state="failed") == find(client, "file-of-nobody") == find(stranger, file_id) == []
    assert find(client, "file-errors", model="another") == find(client, file_id, state="finalizing") == []


def test_jobs_are_found_by_filters_together(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    jobs = [create(client, "f")["id"] for _ in range(4)]
    columns = [("finishing", "m"), ("expiring", "m"), ("expiring", "n"), ("succeeded", "m")]
    with either.state.services.db.write() as session:
        for job_id, (state, model) in zip(jobs, columns, strict=True):
            job = session.get_one(Job, job_id)
            job.state, job.model = state, model

    def find(**query: str) -> list[int]:
        return [jobs.index(job_id) for job_id in ids(client.get("/v1/jobs", params=query))]

    assert find(state="finalizing") == [2, 1, 0], "two states of the ledger"
    assert find(state="finalizing", limit="1", after=jobs[1]) == [0]
    assert find(state="finalizing", model="m", kind="embedding") == [1, 0]
    assert find(state="finalizing", kind="generation") == []
    assert find(state="succeeded", model="m") == find(state="completed", kind="embedding") == [3]
    assert find(state="succeeded", model="n") == []


def test_a_filter_takes_every_state_and_every_status() -> None:
    assert set(get_args(StateOrStatus)) == {*JobState, *STATUS.values()}


def test_a_job_without_a_deadline_says_so(app: FastAPI, client: TestClient) -> None:
    job_id = create(client, "f")["id"]
    with app.state.services.db.write() as session:
        job = session.get_one(Job, job_id)
        job.deadline, job.window = None, ""

    shown = client.get(f"/v1/jobs/{job_id}").json()

    assert (shown["deadline"], shown["completion_window"]) == (None, None)
    assert client.get(f"/v1/batches/{job_id}").json()["expires_at"] is None


def test_pages_by_state_go_on_after_a_job_that_left_that_state(
    app: FastAPI, client: TestClient, stranger: TestClient
) -> None:
    first, second, third = (create(client, "f")["id"] for _ in range(3))
    page = {"state": "queued", "limit": "1"}
    assert ids(client.get("/v1/jobs", params=page)) == [third]

    worker_steps.fail(app.state.services.db, third, [])

    assert ids(client.get("/v1/jobs", params={**page, "after": third})) == [second]
    assert ids(client.get("/v1/jobs", params={**page, "after": second})) == [first]
    foreign = stranger.get("/v1/jobs", params={**page, "after": third})
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (400, "invalid_cursor")


def test_running_job_shows_progress_rate_and_eta(app: FastAPI, client: TestClient) -> None:
    db, storage = services(app)
    job_id = create(client)["id"]
    worker_steps.plan(db, job_id, 10, "m")
    with db.write() as session:
        session.get_one(Job, job_id).in_progress_at -= 500
    worker_steps.answer(db, storage, worker_steps.take(db, job_id), range(5))

    job = client.get(f"/v1/jobs/{job_id}").json()

    assert (job["object"], job["state"], job["status"], job["model"]) == ("job", "running", "in_progress", "m")
    assert job["progress"] == {"total": 10, "completed": 5, "failed": 0, "running": 5, "fraction": 0.5}
    assert 0.1 < job["rate"]["items_per_second"] <= 1
    assert job["rate"]["tokens_per_second"] == pytest.approx(5 * job["rate"]["items_per_second"], rel=0.1)
    assert job["eta_seconds"] == pytest.approx(5 / job["rate"]["items_per_second"], rel=0.1)
    assert job["usage"]["total_tokens"] == 25
    assert 0 <= job["worked_seconds"] < 400, "since the claim, and not since it was planned"


def test_a_queued_job_knows_its_place(app: FastAPI, client: TestClient, stranger: TestClient) -> None:
    first = create(client, "f")["id"]
    last = create(client, "f", priority=-1)["id"]
    urgent = create(client, "f", priority=5)["id"]
    create(stranger, "f", priority=100)

    places = {job_id: client.get(f"/v1/jobs/{job_id}").json()["queue_position"] for job_id in (urgent, first, last)}

    assert places == {urgent: 0, first: 1, last: 2}


def test_job_shows_its_waiting_reason(app: FastAPI, client: TestClient) -> None:
    from jobs.ledger import ledger

    job_id = create(client, "f")["id"]
    with app.state.services.db.write() as session:
        ledger.wait_for(session, job_id, "model")

    assert client.get(f"/v1/jobs/{job_id}").json()["waiting_for"] == "waiting_for_model"


def test_an_ended_job_has_no_pace_and_no_place(app: FastAPI, client: TestClient) -> None:
    job_id = create(client)["id"]
    worker_steps.run(*services(app), job_id, 2)

    job = client.get(f"/v1/jobs/{job_id}").json()

    assert (job["state"], job["status"], job["progress"]["fraction"]) == ("succeeded", "completed", 1.0)
    assert job["progress"]["running"] == 0
    assert (job["rate"], job["eta_seconds"], job["queue_position"]) == (None, None, None)


def test_events_are_polled_by_their_number(app: FastAPI, client: TestClient) -> None:
    job_id = create(client)["id"]
    worker_steps.run(*services(app), job_id, 1)

    whole = client.get(f"/v1/jobs/{job_id}/events").json()
    tail = client.get(f"/v1/jobs/{job_id}/events", params={"after": 2}).json()
    head = client.get(f"/v1/jobs/{job_id}/events", params={"limit": 2}).json()

    assert [event["seq"] for event in whole["data"]] == [1, 2, 3, 4]
    assert [event["type"] for event in whole["data"]] == [
        "job.created",
        "job.running",
        "job.finishing",
        "batch.completed",
    ]
    assert (tail["data"], tail["has_more"]) == (whole["data"][2:], False)
    assert (head["data"], head["has_more"]) == (whole["data"][:2], True)


def parsed(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    """Parse the events of a stream, without comments."""
    blocks = [block.split("\n") for block in text.split("\n\n") if block and not block.startswith(":")]
    fields = [dict(line.split(": ", 1) for line in block) for block in blocks]
    return [(int(one["id"]), one["event"], json.loads(one["data"])) for one in fields]


def test_a_stream_of_events_ends_with_the_job(app: FastAPI, client: TestClient) -> None:
    job_id = create(client)["id"]
    worker_steps.run(*services(app), job_id, 1)

    answer = client.get(f"/v1/jobs/{job_id}/events", headers=SSE)

    events = parsed(answer.text)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert [event[0] for event in events] == [1, 2, 3, 4]
    assert events[-1][1] == "batch.completed"
    assert events[-1][2] == client.get(f"/v1/jobs/{job_id}/events").json()["data"][-1]


@pytest.mark.parametrize(("given", "first"), [("2", 3), ("0", 1), ("nonsense", 1), ("4", None), ("9" * 40, None)])
def test_a_stream_goes_on_after_the_last_event_known(
    app: FastAPI, client: TestClient, given: str, first: int | None
) -> None:
    job_id = create(client)["id"]
    worker_steps.run(*services(app), job_id, 1)

    answer = client.get(f"/v1/jobs/{job_id}/events", headers={**SSE, "Last-Event-ID": given})

    assert next((event[0] for event in parsed(answer.text)), None) == first


def test_the_results_of_an_ended_job_are_its_files(app: FastAPI, client: TestClient) -> None:
    job_id = create(client)["id"]
    output = worker_steps.run(*services(app), job_id, 3)

    answer = client.get(f"/v1/jobs/{job_id}/results")

    assert answer.headers["Content-Type"].startswith("application/jsonl")
    assert answer.content == client.get(f"/v1/files/{output}/content").content


def test_finished_results_are_readable_during_job_run(app: FastAPI, client: TestClient) -> None:
    db, storage = services(app)
    job_id = create(client)["id"]
    worker_steps.plan(db, job_id, 4)
    claim = worker_steps.take(db, job_id)
    worker_steps.answer(db, storage, claim, [0, 3])

    before = client.get(f"/v1/jobs/{job_id}/results", params={"follow": "false"})
    worker_steps.answer(db, storage, claim, [1], seq=1)
    after = client.get(f"/v1/jobs/{job_id}/results", params={"follow": "false"})

    assert [json.loads(line)["custom_id"] for line in before.text.splitlines()] == ["c0", "c3"]
    assert [json.loads(line)["custom_id"] for line in after.text.splitlines()] == ["c0", "c3", "c1"]


def test_a_process_that_stops_gives_the_results_that_are_there_and_follows_no_job(
    app: FastAPI, client: TestClient
) -> None:
    db, storage = services(app)
    live, ended = create(client)["id"], create(client)["id"]
    worker_steps.plan(db, live, 4)
    worker_steps.answer(db, storage, worker_steps.take(db, live), [0, 3])
    output = worker_steps.run(db, storage, ended, 3)
    app.state.services.draining.set()

    rest = client.get(f"/v1/jobs/{live}/results")
    whole = client.get(f"/v1/jobs/{ended}/results")

    assert [json.loads(line)["custom_id"] for line in rest.text.splitlines()] == ["c0", "c3"]
    assert whole.content == client.get(f"/v1/files/{output}/content").content != b""


def test_results_that_retention_has_removed_are_passed_over(app: FastAPI, client: TestClient) -> None:
    db, storage = services(app)
    job_id = create(client)["id"]
    worker_steps.plan(db, job_id, 2)
    worker_steps.answer(db, storage, worker_steps.take(db, job_id), [0])
    storage.delete(f"jobs/{job_id}")

    assert client.get(f"/v1/jobs/{job_id}/results", params={"follow": "false"}).content == b""


def narrow(key: ApiKey) -> None:
    key.scopes = ["api.files.read"]


def expire(key: ApiKey) -> None:
    key.expires_at = 1.0


def revoke(key: ApiKey) -> None:
    key.revoked_at = 1.0


@pytest.mark.parametrize("change", [revoke, expire, narrow])
def test_event_and_result_streams_end_with_their_key(
    make_app: Callable[..., FastAPI], change: Callable[[ApiKey], None]
) -> None:
    app = make_app(timings=replace(Timings(), trusted=60.0))
    key = make_key(app)
    client = client_of(app, key)
    job_id = create(client)["id"]
    assert client.get(f"/v1/jobs/{job_id}").status_code == 200
    with app.state.services.db.write() as session:
        change(session.get_one(ApiKey, key.split("_")[1]))

    events = client.get(f"/v1/jobs/{job_id}/events", headers=SSE)
    results = client.get(f"/v1/jobs/{job_id}/results")

    assert (events.status_code, parsed(events.text)) == (200, [])
    assert (results.status_code, results.text) == (200, "")


def test_cancel_is_repeatable_and_refused_for_succeeded_job(app: FastAPI, client: TestClient) -> None:
    job_id = create(client)["id"]

    first, second = (client.post(f"/v1/jobs/{job_id}/cancel") for _ in range(2))
    worker_steps.finish(*services(app), job_id, [])
    third = client.post(f"/v1/jobs/{job_id}/cancel")
    ended = create(client)["id"]
    worker_steps.run(*services(app), ended, 1)
    refused = client.post(f"/v1/jobs/{ended}/cancel")

    assert [answer.json()["state"] for answer in (first, second, third)] == ["cancelling", "cancelling", "cancelled"]
    assert refused.status_code == 409
    assert refused.headers["x-should-retry"] == "false"


def test_a_retry_is_a_new_job_over_the_same_input(app: FastAPI, client: TestClient) -> None:
    db, storage = services(app)
    file_id = upload(client)
    old = create(client, file_id, metadata={"k": "v"}, priority=3, dedupe=True)["id"]
    worker_steps.run(db, storage, old, 4, failed=2)
    before = client.get(f"/v1/jobs/{old}").json()

    new = client.post(f"/v1/jobs/{old}/retry", json={"overrides": {"max_tokens": 5}}).json()

    assert new["id"] != old
    assert (new["state"], new["retry_of"], new["overrides"]) == ("queued", old, {"max_tokens": 5})
    for name in ("kind", "endpoint", "input_file_id", "metadata", "priority", "completion_window"):
        assert new[name] == before[name]
    assert client.get(f"/v1/jobs/{old}").json() == before
    assert client.get(f"/v1/batches/{new['id']}").json()["status"] == "validating"
    with db.read() as session:
        job = session.get_one(Job, new["id"])
        assert job.input_path == f"files/{file_id}"
        assert job.payload == {"dedupe": True, "overrides": {"max_tokens": 5}}


def test_overrides_of_a_retry_of_a_retry_add_up(app: FastAPI, client: TestClient) -> None:
    first = create(client)["id"]
    worker_steps.run(*services(app), first, 2, failed=1)
    second = client.post(f"/v1/jobs/{first}/retry", json={"overrides": {"a": 1, "b": 1}}).json()["id"]
    worker_steps.run(*services(app), second, 1, failed=1)

    third = client.post(f"/v1/jobs/{second}/retry", json={"overrides": {"b": 2}, "completion_window": "2h"}).json()

    assert third["overrides"] == {"a": 1, "b": 2}
    assert third["deadline"] - third["created_at"] == 7200


@pytest.mark.parametrize(
    ("overrides", "param", "code"),
    [
        ({"a": "x" * 70_000}, "overrides", "overrides_too_large"),
        ({"model": ["tiny"]}, "overrides.model", "invalid_type"),
        ({"model": None}, "overrides.model", "invalid_type"),
        ({"model": ""}, "overrides.model", "invalid_type"),
        ({"stream": "no"}, "overrides.stream", "invalid_type"),
        ({"stream": True}, "overrides.stream", "streaming_unsupported"),
        ({"input": None}, "overrides.input", "invalid_request"),
    ],
)
def test_overrides_that_no_line_may_have_are_refused(
    app: FastAPI, client: TestClient, overrides: dict[str, Any], param: str, code: str
) -> None:
    job_id = create(client)["id"]
    worker_steps.run(*services(app), job_id, 2, failed=1)

    answer = client.post(f"/v1/jobs/{job_id}/retry", json={"overrides": overrides})

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert len(ids(client.get("/v1/jobs"))) == 1


def test_overrides_that_add_up_to_too_much_are_refused_and_lists_have_none(app: FastAPI, client: TestClient) -> None:
    first = create(client)["id"]
    worker_steps.run(*services(app), first, 2, failed=1)
    second = client.post(f"/v1/jobs/{first}/retry", json={"overrides": {"a": "x" * 40_000}}).json()["id"]
    worker_steps.run(*services(app), second, 1, failed=1)

    answer = client.post(f"/v1/jobs/{second}/retry", json={"overrides": {"b": "x" * 40_000}})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "overrides_too_large")
    assert [job["overrides"] for job in client.get("/v1/jobs").json()["data"]] == [None, None]
    assert len(client.get(f"/v1/jobs/{second}").json()["overrides"]["a"]) == 40_000


@pytest.mark.parametrize("which", ["length", "all"])
def test_a_retry_names_the_lines_that_it_runs(app: FastAPI, client: TestClient, which: str) -> None:
    old = create(client)["id"]
    worker_steps.run(*services(app), old, 3, cut_off=2)

    new = client.post(f"/v1/jobs/{old}/retry", json={"which": which}).json()

    with services(app)[0].read() as session:
        assert session.get_one(Job, new["id"]).payload == {"which": which}


def test_retry_with_same_key_and_different_lines_is_refused(app: FastAPI, client: TestClient) -> None:
    old = create(client)["id"]
    worker_steps.run(*services(app), old, 3, failed=1, cut_off=1)
    headers = {"Idempotency-Key": "k"}

    first, second = (client.post(f"/v1/jobs/{old}/retry", json={"which": "all"}, headers=headers) for _ in range(2))
    other = client.post(f"/v1/jobs/{old}/retry", json={"which": "length"}, headers=headers)

    assert first.json()["id"] == second.json()["id"]
    assert other.status_code == 422


def test_a_retry_does_not_take_over_which_lines_an_earlier_retry_ran(app: FastAPI, client: TestClient) -> None:
    old = create(client)["id"]
    worker_steps.run(*services(app), old, 3, cut_off=1)
    second = client.post(f"/v1/jobs/{old}/retry", json={"which": "length"}).json()["id"]
    worker_steps.fail(services(app)[0], second, [])

    third = client.post(f"/v1/jobs/{second}/retry").json()["id"]

    with services(app)[0].read() as session:
        assert session.get_one(Job, third).payload == {}


def test_repeated_retry_with_same_key_returns_same_job(app: FastAPI, client: TestClient) -> None:
    old = create(client)["id"]
    worker_steps.run(*services(app), old, 2, failed=1)
    headers = {"Idempotency-Key": "k"}

    first, second = (client.post(f"/v1/jobs/{old}/retry", headers=headers).json()["id"] for _ in range(2))

    assert first == second


@pytest.mark.parametrize(("kind", "permission"), [("generation", "api.batch.write"), ("evaluation", "api.evals.write")])
def test_retry_needs_the_permission_that_makes_jobs_of_the_kind(
    app: FastAPI, client: TestClient, kind: str, permission: str
) -> None:
    job_id = create(client)["id"]
    worker_steps.run(*services(app), job_id, 2, failed=1)
    with services(app)[0].write() as session:
        session.get_one(Job, job_id).kind = kind
        scopes = [["api.jobs.write"], ["api.jobs.write", permission]]
        clients = [client_of(app, create_key(session, "default", scopes=each)) for each in scopes]

    refused, permitted = (each.post(f"/v1/jobs/{job_id}/retry") for each in clients)

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
    assert f"Missing scopes: {permission}." in refused.json()["error"]["message"]
    assert permitted.status_code == (200 if kind == "generation" else 400)  # there is no such run
    with services(app)[0].read() as session:
        assert session.query(Job).count() == 1 + (kind == "generation")


@pytest.mark.parametrize(
    ("prepare", "status", "code"),
    [
        ("live", 409, "invalid_state"),
        ("all good", 400, "nothing_to_retry"),
        ("file gone", 400, "input_file_gone"),
        ("long ago", 400, "results_expired"),
        ("stream", 400, "streaming_unsupported"),
        ("window", 400, "invalid_value"),
        ("not cut off", 400, "nothing_to_retry"),
        ("cut off long ago", 400, "results_expired"),
        ("which", 400, "invalid_value"),
    ],
)
def test_a_retry_that_makes_no_sense_is_refused(
    app: FastAPI, client: TestClient, prepare: str, status: int, code: str
) -> None:
    file_id = upload(client)
    job_id = create(client, file_id)["id"]
    if prepare != "live":
        cut_off = prepare == "cut off long ago"
        worker_steps.run(*services(app), job_id, 2, failed=prepare != "all good", cut_off=cut_off)
    if prepare == "file gone":
        client.delete(f"/v1/files/{file_id}")
    if prepare == "long ago":
        with services(app)[0].write() as session:
            session.query(Shard).delete()
    if prepare == "cut off long ago":  # by a version that did not note which lines were cut off
        with services(app)[0].write() as session:
            session.query(Segment).update({Segment.cut_off: None})
    bodies: dict[str, dict[str, Any]] = {
        "stream": {"overrides": {"stream": True}},
        "window": {"completion_window": "1s"},
        "not cut off": {"which": "length"},
        "cut off long ago": {"which": "length"},
        "which": {"which": "some"},
    }
    body = bodies.get(prepare, {})

    answer = client.post(f"/v1/jobs/{job_id}/retry", json=body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert len(ids(client.get("/v1/jobs"))) == 1


def test_a_list_of_many_running_jobs_asks_for_all_sums_at_once(app: FastAPI, client: TestClient) -> None:
    from sqlalchemy import event

    db, storage = services(app)
    for _ in range(5):
        job_id = create(client, "f")["id"]
        worker_steps.plan(db, job_id, 2)
        worker_steps.answer(db, storage, worker_steps.take(db, job_id), [0])
    asked: list[str] = []
    event.listen(db.engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))

    listed = client.get("/v1/jobs").json()["data"]

    assert [job["progress"]["completed"] for job in listed] == [1] * 5
    assert sum(Shard.__tablename__ in statement for statement in asked) == 1
