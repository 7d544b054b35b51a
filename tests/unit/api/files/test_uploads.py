"""Multi-part uploads: the parts as `complete` orders them, byte for byte, or nothing."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.concurrency import run_in_threadpool

from api.files import uploads
from api.http import multipart
from jobs.errors import StorageUnavailable
from jobs.files.tables import Upload
from tests.support.system import pause


def create(client: TestClient, size: int, **more: Any) -> str:
    body = {"bytes": size, "filename": "a.jsonl", "mime_type": "application/jsonl", "purpose": "batch", **more}
    answer = client.post("/v1/uploads", json=body)
    assert answer.status_code == 200, answer.text
    upload_id: str = answer.json()["id"]
    return upload_id


def add(client: TestClient, upload_id: str, data: bytes) -> Any:
    return client.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("upload", data)})


def complete(client: TestClient, upload_id: str, parts: list[str], **more: Any) -> Any:
    return client.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": parts, **more})


def test_parts_are_joined_in_the_order_given_not_in_that_of_arrival(client: TestClient) -> None:
    upload_id = create(client, 6)
    last, first = (add(client, upload_id, data).json()["id"] for data in (b"def", b"abc"))

    done = complete(client, upload_id, [first, last], md5=hashlib.md5(b"abcdef").hexdigest()).json()

    assert done["status"] == "completed"
    assert done["file"]["bytes"] == 6
    assert client.get(f"/v1/files/{done['file']['id']}/content").content == b"abcdef"


def test_an_upload_is_shown_with_every_key(client: TestClient) -> None:
    body = {"bytes": 6, "filename": "a.jsonl", "mime_type": "x", "purpose": "batch"}

    shown = client.post("/v1/uploads", json=body).json()

    assert shown | {"id": "", "created_at": 0, "expires_at": 3600} == {
        "id": "",
        "object": "upload",
        "bytes": 6,
        "created_at": 0,
        "expires_at": 3600,
        "filename": "a.jsonl",
        "purpose": "batch",
        "status": "pending",
        "file": None,
    }
    assert shown["expires_at"] == shown["created_at"] + 3600


def test_file_expires_at_time_requested_by_upload(client: TestClient) -> None:
    upload_id = create(client, 1, expires_after={"anchor": "created_at", "seconds": 7200})
    part = add(client, upload_id, b"x").json()["id"]

    file = complete(client, upload_id, [part]).json()["file"]

    assert file["expires_at"] == file["created_at"] + 7200


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("missing", "bytes_mismatch"),
        ("repeated", "duplicate_part"),
        ("unknown", "part_not_found"),
        ("none", "array_below_min_length"),
        ("of another upload", "part_not_found"),
    ],
)
def test_parts_that_do_not_make_the_file_are_refused_and_may_be_mended(
    client: TestClient, name: str, code: str
) -> None:
    upload_id, other = create(client, 6), create(client, 6)
    first, last = (add(client, upload_id, data).json()["id"] for data in (b"abc", b"def"))
    foreign = add(client, other, b"def").json()["id"]
    lists = {
        "missing": [first],
        "repeated": [first, first],
        "unknown": [first, "part_unknown"],
        "none": [],
        "of another upload": [first, foreign],
    }

    refused = complete(client, upload_id, lists[name])

    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == code
    assert client.get("/v1/files").json()["data"] == []
    assert complete(client, upload_id, [first, last]).status_code == 200


def test_a_wrong_checksum_leaves_no_file(app: FastAPI, client: TestClient) -> None:
    upload_id = create(client, 3)
    part = add(client, upload_id, b"abc").json()["id"]

    refused = complete(client, upload_id, [part], md5="0" * 32)

    assert refused.json()["error"]["code"] == "md5_mismatch"
    assert not list((Path(app.state.services.storage.root) / "files").glob("*"))
    assert complete(client, upload_id, [part]).status_code == 200


def test_a_completion_with_a_wrong_md5_writes_nothing(
    client: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = create(client, 3)
    part = add(client, upload_id, b"abc").json()["id"]
    monkeypatch.setattr(app.state.services.storage, "writer", lambda path: pytest.fail(f"{path} was opened"))

    refused = complete(client, upload_id, [part], md5="0" * 32)

    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "md5_mismatch"


def test_the_third_completion_with_a_wrong_md5_cancels_the_upload(client: TestClient, app: FastAPI) -> None:
    upload_id = create(client, 3)
    part = add(client, upload_id, b"abc").json()["id"]

    refused = [complete(client, upload_id, [part], md5="0" * 32) for _ in range(3)]
    late = complete(client, upload_id, [part], md5=hashlib.md5(b"abc").hexdigest())

    assert [answer.json()["error"]["code"] for answer in refused] == ["md5_mismatch"] * 3
    assert ["cancelled" in answer.json()["error"]["message"] for answer in refused] == [False, False, True]
    assert (late.status_code, late.json()["error"]["code"]) == (409, "upload_not_pending")
    assert not list((Path(app.state.services.storage.root) / "uploads").glob("*"))


def test_repeated_complete_returns_same_file(client: TestClient) -> None:
    upload_id = create(client, 3)
    part = add(client, upload_id, b"abc").json()["id"]

    first, second = complete(client, upload_id, [part]), complete(client, upload_id, [part])

    assert first.json() == second.json()
    assert len(client.get("/v1/files").json()["data"]) == 1


@pytest.mark.parametrize("named", [["second", "first"], ["first"], ["first", "unknown"], ["first", "other"]])
def test_repeated_complete_with_different_parts_is_refused(client: TestClient, app: FastAPI, named: list[str]) -> None:
    upload_id = create(client, 6)
    parts = {name: add(client, upload_id, data).json()["id"] for name, data in
             (("first", b"abc"), ("second", b"def"), ("other", b"ghi"))}  # fmt: skip
    parts["unknown"] = "part_unknown"
    done = complete(client, upload_id, [parts["first"], parts["second"]])

    refused = complete(client, upload_id, [parts[name] for name in named])

    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, "part_ids", "upload_completed")
    assert complete(client, upload_id, [parts["first"], parts["second"]]).json() == done.json()


def test_repeated_complete_without_stored_parts_hash_returns_file(client: TestClient, app: FastAPI) -> None:
    upload_id = create(client, 3)
    part = add(client, upload_id, b"abc").json()["id"]
    done = complete(client, upload_id, [part])
    with app.state.services.db.write() as session:
        session.get_one(Upload, upload_id).parts_sha256 = None

    assert complete(client, upload_id, ["part_other"]).json() == done.json()


def test_after_completion_no_part_is_taken_and_no_cancel(client: TestClient) -> None:
    upload_id = create(client, 3)
    part = add(client, upload_id, b"abc").json()["id"]
    complete(client, upload_id, [part])

    late, cancelled = add(client, upload_id, b"def"), client.post(f"/v1/uploads/{upload_id}/cancel")

    for answer in (late, cancelled):
        assert answer.status_code == 409
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["code"] == "upload_not_pending"


def test_a_cancelled_upload_takes_nothing_more_and_keeps_nothing(app: FastAPI, client: TestClient) -> None:
    upload_id = create(client, 3)
    part = add(client, upload_id, b"abc").json()["id"]

    statuses = [client.post(f"/v1/uploads/{upload_id}/cancel").json()["status"] for _ in range(2)]

    assert statuses == ["cancelled", "cancelled"]
    assert add(client, upload_id, b"abc").status_code == 409
    assert complete(client, upload_id, [part]).status_code == 409
    assert app.state.services.storage.list(f"uploads/{upload_id}") == []


def test_repeated_part_with_idempotency_key_is_replayed_after_cancel(
    client: TestClient,
) -> None:
    upload_id = create(client, 3)

    def send(key: str) -> Any:
        path, key_of = f"/v1/uploads/{upload_id}/parts", {"Idempotency-Key": key}
        return client.post(path, files={"data": ("upload", b"abc")}, headers=key_of)

    first = send("k")
    client.post(f"/v1/uploads/{upload_id}/cancel")

    assert (send("k").status_code, send("k").json()) == (200, first.json())
    assert (send("another").status_code, add(client, upload_id, b"abc").status_code) == (409, 409)


def test_an_upload_expires_after_its_hour(app: FastAPI, client: TestClient) -> None:
    upload_id = create(client, 3)
    part = add(client, upload_id, b"abc").json()["id"]
    with app.state.services.db.write() as session:
        session.get_one(Upload, upload_id).expires_at = 1.0

    answers = [
        add(client, upload_id, b"x"),
        complete(client, upload_id, [part]),
        client.post(f"/v1/uploads/{upload_id}/cancel"),
    ]

    assert [answer.json()["error"]["code"] for answer in answers] == ["expired"] * 3
    assert client.get("/v1/files").json()["data"] == []


def test_sizes_have_limits(app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "MAX_PART_BYTES", 1000)
    monkeypatch.setattr(uploads, "MAX_UPLOAD_BYTES", 5000)
    upload_id = create(client, 5000)

    answers = [add(client, upload_id, b"x" * size) for size in (1000, 1001, 99_999)]
    statuses = [answer.status_code for answer in answers]
    too_large = client.post("/v1/uploads", json={"bytes": 5001, "filename": "a", "mime_type": "b", "purpose": "batch"})

    assert statuses == [200, 413, 413]
    assert answers[1].json()["error"]["param"] == "data"
    assert too_large.json()["error"]["code"] == "integer_above_max_value"
    assert len(app.state.services.storage.list("uploads")) == 1


def test_part_that_arrives_during_completion_leaves_nothing(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = create(client, 3)
    part = add(client, upload_id, b"abc").json()["id"]
    receive = uploads.receive

    async def slow(*arguments: Any) -> Any:
        received = await receive(*arguments)
        await run_in_threadpool(complete, client, upload_id, [part])
        return received

    monkeypatch.setattr(uploads, "receive", slow)
    late = add(client, upload_id, b"late")

    assert (late.status_code, late.json()["error"]["code"]) == (409, "upload_not_pending")
    assert app.state.services.storage.list("uploads") == []
    assert len(client.get("/v1/files").json()["data"]) == 1


@pytest.mark.parametrize("when", ["before it reads the parts", "after it has read them"])
def test_concurrent_completions_in_two_processes_return_same_file(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    upload_id = create(client, 3)
    part = add(client, upload_id, b"abc").json()["id"]
    assemble, answers = uploads._assemble, []

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(uploads, "_assemble", assemble)
        monkeypatch.setattr(uploads, "_assembling", WeakValueDictionary())  # of another process
        file = assemble(*arguments) if when.startswith("after") else None
        answers.append(complete(client, upload_id, [part]))
        return file or assemble(*arguments)

    monkeypatch.setattr(uploads, "_assemble", overtaken)
    answers.append(complete(client, upload_id, [part]))

    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert len(client.get("/v1/files").json()["data"]) == 1
    assert len(app.state.services.storage.list("files")) == 1


def test_concurrent_completions_in_same_process_copy_parts_once(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = create(client, 3)
    part = add(client, upload_id, b"abc").json()["id"]
    assemble, times = uploads._assemble, list[int]()

    def slowly(*arguments: Any) -> Any:
        times.append(len(times))
        pause(0.3)
        return assemble(*arguments)

    monkeypatch.setattr(uploads, "_assemble", slowly)
    with client, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: complete(client, upload_id, [part]), range(4)))

    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.json()["file"]["id"] for answer in answers}) == 1
    assert times == [0]


def test_resent_parts_are_accepted_up_to_size_limit(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multipart, "MAX_PART_BYTES", 100)
    upload_id = create(client, 50)

    sent = [add(client, upload_id, b"x" * 50).status_code for _ in range(5)]

    assert sent == [200, 200, 200, 200, 400]
    assert len(app.state.services.storage.list(f"uploads/{upload_id}")) == 4


def test_an_upload_that_is_cancelled_while_it_is_completed_makes_no_file(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = create(client, 3)
    part = add(client, upload_id, b"abc").json()["id"]
    assemble = uploads._assemble

    def cancelled(*arguments: Any) -> Any:
        assert client.post(f"/v1/uploads/{upload_id}/cancel").status_code == 200
        return assemble(*arguments)

    monkeypatch.setattr(uploads, "_assemble", cancelled)
    refused = complete(client, upload_id, [part])

    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "upload_not_pending")
    assert app.state.services.storage.list("files") == []


def test_missing_parts_are_reported_without_storage_path(app: FastAPI, client: TestClient) -> None:
    upload_id = create(client, 3)
    part = add(client, upload_id, b"abc").json()["id"]
    app.state.services.storage.delete(f"uploads/{upload_id}/{part}")

    error = complete(client, upload_id, [part]).json()["error"]

    assert (error["param"], error["code"]) == ("part_ids", "not_found")
    assert "uploads/" not in error["message"]


def test_an_upload_ends_though_its_parts_cannot_be_removed(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """End the upload although its parts stay: a client that saw a failure would try again."""

    def refuse(_: str) -> None:
        raise StorageUnavailable

    joined, given_up = create(client, 3), create(client, 3)
    part = add(client, joined, b"abc").json()["id"]
    monkeypatch.setattr(app.state.services.storage, "delete", refuse)

    assert complete(client, joined, [part]).json()["status"] == "completed"
    assert client.post(f"/v1/uploads/{given_up}/cancel").json()["status"] == "cancelled"


def test_refused_upload_returns_400_even_if_cleanup_fails(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> None:
        raise StorageUnavailable

    monkeypatch.setattr(app.state.services.storage, "delete", refuse)

    bad = client.post("/v1/files", files={"file": ("a", b"x")}, data={"purpose": "of my own"})
    assert bad.status_code == 400
