"""Files: what arrives is what is kept; what does not arrive whole leaves nothing."""

import asyncio
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import Response
from fastapi.testclient import TestClient
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy import event, select

from api.http.download import _span
from api.http.idempotency import Lease
from jobs.files.tables import File, UploadPart
from jobs.ledger.tables import Audit
from jobs.platform import storage
from jobs.platform.storage import Space, Storage
from tests.support.web import make_key
from tests.unit.api.conftest import client_of

BOUNDARY = "f5c0f858a91f548ca1712d6ffa2ee094"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def upload(client: TestClient, data: bytes = b"hello\n", name: str = "a.jsonl", **fields: str) -> Any:
    return client.post("/v1/files", files={"file": (name, data)}, data={"purpose": "batch", **fields})


def form(*parts: tuple[str, bytes], end: str = "--\r\n") -> bytes:
    """Parts of a form by their Content-Disposition."""
    body = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + data + b"\r\n"
        for disposition, data in parts
    )
    return body + f"--{BOUNDARY}{end}".encode()


FILE = ('form-data; name="file"; filename="a.jsonl"', b"hello\n")
PURPOSE = ('form-data; name="purpose"', b"batch")


def stored(app: FastAPI) -> list[str]:
    root = Path(app.state.services.storage.root)
    return [path.name for path in root.rglob("*") if path.is_file()]


def test_a_file_comes_back_as_it_was_sent(app: FastAPI, client: TestClient) -> None:
    data = bytes(range(256)) * 20_000

    file = upload(client, data).json()

    assert client.get(f"/v1/files/{file['id']}/content").content == data
    assert client.get(f"/v1/files/{file['id']}").json() == file
    with app.state.services.db.read() as session:
        assert session.get_one(File, file["id"]).sha256 == hashlib.sha256(data).hexdigest()


def test_a_file_is_shown_with_every_key(client: TestClient) -> None:
    file = upload(client, b"12345", "data.jsonl").json()

    assert file | {"id": "", "created_at": 0, "expires_at": 0} == {
        "id": "",
        "object": "file",
        "bytes": 5,
        "created_at": 0,
        "expires_at": 0,
        "filename": "data.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }
    assert file["expires_at"] == file["created_at"] + 30 * 86_400


def test_an_empty_file_is_a_file(client: TestClient) -> None:
    file = upload(client, b"").json()

    assert file["bytes"] == 0
    assert client.get(f"/v1/files/{file['id']}/content").content == b""


def test_the_fields_may_follow_the_file(client: TestClient) -> None:
    assert client.post("/v1/files", content=form(FILE, PURPOSE), headers=FORM).status_code == 200


def test_non_batch_file_expires_only_on_request(client: TestClient) -> None:
    kept = upload(client, purpose="user_data").json()
    asked = {"purpose": "user_data", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    going = upload(client, **asked).json()

    assert kept["expires_at"] is None
    assert going["expires_at"] == going["created_at"] + 3600


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"purpose": "nonsense"}, "purpose", "invalid_value"),
        ({"purpose": "batch_output"}, "purpose", "invalid_value"),
        ({"expires_after[anchor]": "created_at"}, "expires_after.seconds", "missing_required_parameter"),
        ({"expires_after[seconds]": "3600"}, "expires_after.anchor", "missing_required_parameter"),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"},
            "expires_after.seconds",
            "integer_below_min_value",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "soon"},
            "expires_after.seconds",
            "invalid_type",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "9" * 5000},
            "expires_after.seconds",
            "invalid_type",
        ),
        ({"colour": "red"}, "colour", "unknown_parameter"),
    ],
)
def test_invalid_field_is_named_and_no_file_is_stored(
    app: FastAPI, client: TestClient, fields: dict[str, str], param: str, code: str
) -> None:
    error = upload(client, **fields).json()["error"]

    assert (error["param"], error["code"]) == (param, code)
    assert stored(app) == []
    assert client.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        form(PURPOSE),
        form(FILE),
        form(FILE, FILE, PURPOSE),
        form(FILE, PURPOSE, PURPOSE),
        form(FILE, PURPOSE, end=""),
        form(FILE, PURPOSE)[:-60],
        form(('form-data; name="file"', b"no file"), PURPOSE),
        form(("form-data", b"x"), PURPOSE),
        form(("attachment; name=file", b"x"), PURPOSE),
        form(('form-data; name="other"; filename="x"', b"x"), PURPOSE),
        form(FILE, ('form-data; name="purpose"', b"\xff")),
        form(FILE, ('form-data; name="purpose"', b"ba\0tch")),
        form(FILE, ('form-data; name="purpose"', b"x" * 70_000)),
        form(FILE, *[(f'form-data; name="f{n}"', b"x") for n in range(100)]),
        form((f'form-data; name="{"x" * 100_000}"', b"x")),
    ],
)
def test_a_form_that_is_not_whole_leaves_nothing(app: FastAPI, client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/files", content=body, headers=FORM)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"]
    assert stored(app) == []


@pytest.mark.parametrize(
    "header", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 1000]
)
def test_a_form_without_a_usable_boundary_is_refused(client: TestClient, header: str) -> None:
    assert client.post("/v1/files", content=form(FILE, PURPOSE), headers={"Content-Type": header}).status_code == 400


@pytest.mark.parametrize(
    "name", ["x" * 4096, "a\x07b", "a\u202egnp.exe", " ", "a/", "a/..", ".", "a\u2028b", "x" * 256]
)
def test_a_file_name_that_misleads_is_refused(app: FastAPI, client: TestClient, name: str) -> None:
    raw = name.replace("\x07", "%07") if "\x07" not in name else name
    disposition = f'form-data; name="file"; filename="{raw}"'

    answer = client.post("/v1/files", content=form((disposition, b"x"), PURPOSE), headers=FORM)

    assert answer.status_code == 400
    assert stored(app) == []


@pytest.mark.parametrize(
    ("name", "kept"), [("../../etc/passwd", "passwd"), ("C:\\a\\b.txt", "b.txt"), ("שלום.txt", "שלום.txt")]
)
def test_a_file_name_is_only_a_name(client: TestClient, name: str, kept: str) -> None:
    body = form((f'form-data; name="file"; filename="{name}"'.replace("\\", "\\\\"), b"x"), PURPOSE)

    assert client.post("/v1/files", content=body, headers=FORM).json()["filename"] == kept


def test_a_file_beyond_the_limit_leaves_nothing(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(file_max_bytes=1000)
    client = client_of(app, make_key(app))

    within, beyond, far_beyond = upload(client, b"x" * 1000), upload(client, b"x" * 1001), upload(client, b"x" * 99_999)

    assert [answer.status_code for answer in (within, beyond, far_beyond)] == [200, 413, 413]
    assert len(stored(app)) == 1


def test_too_little_space_is_507_before_a_byte_is_written(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(min_free_bytes=1 << 60)
    client = client_of(app, make_key(app))

    answer = upload(client)

    assert answer.status_code == 507
    assert answer.json()["error"]["code"] == "insufficient_storage"
    assert int(answer.headers["Retry-After"]) > 0
    assert stored(app) == []


def test_a_disk_without_free_inodes_is_507_in_words_of_its_own(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "space_at", lambda _path: Space(bytes=1 << 40, inodes=0))

    answer = upload(client)

    assert answer.status_code == 507
    assert answer.json()["error"]["code"] == "insufficient_storage"
    assert "no free inodes" in answer.json()["error"]["message"]
    assert stored(app) == []


def test_a_disk_that_fills_up_meanwhile_is_507_and_leaves_nothing(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jobs.platform.storage.os.fsync", full)
    answer = upload(client)
    monkeypatch.undo()

    assert answer.status_code == 507
    assert stored(app) == []
    assert client.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize("path", ["/v1/files", "/v1/uploads/{upload}/parts"])
def test_bytes_remain_stored_if_row_is_written_after_request_cancellation(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """As at a shutdown, which waits for nobody in the end: the thread that writes the row goes on."""
    announced = {"bytes": 1, "filename": "f", "mime_type": "text/plain", "purpose": "assistants"}
    path = path.format(upload=client.post("/v1/uploads", json=announced).json()["id"])
    begun, cut_off, ended = threading.Event(), threading.Event(), threading.Event()
    complete = Lease.complete

    def late(lease: Lease, *given: Any) -> Response:
        begun.set()
        cut_off.wait(10)
        try:
            return complete(lease, *given)
        finally:
            ended.set()

    async def cut() -> None:
        sent = {"files": {"file": b"x"}, "data": {"purpose": "batch"}} if "files" in path else {"files": {"data": b"x"}}
        async with AsyncClient(transport=ASGITransport(app), base_url="http://web", headers=client.headers) as asking:
            task = asyncio.create_task(asking.post(path, **sent))
            assert await asyncio.to_thread(begun.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        cut_off.set()

    monkeypatch.setattr(Lease, "complete", late)
    asyncio.run(cut())
    assert ended.wait(30)

    with app.state.services.db.read() as session:
        rows = [Path(row.path).name for table in (File, UploadPart) for row in session.scalars(select(table))]
    assert len(rows) == 1
    assert stored(app) == rows


def test_deleted_file_is_not_found_and_its_bytes_stay_in_storage(app: FastAPI, client: TestClient) -> None:
    file = upload(client).json()

    answer = client.delete(f"/v1/files/{file['id']}")

    assert answer.json() == {"id": file["id"], "object": "file", "deleted": True}
    for again in (client.get, client.delete):
        assert again(f"/v1/files/{file['id']}").status_code == 404
    assert client.get(f"/v1/files/{file['id']}/content").status_code == 404
    assert client.get("/v1/files").json()["data"] == []
    assert stored(app) == [file["id"]]


def test_an_expired_file_does_not_exist(app: FastAPI, client: TestClient) -> None:
    file = upload(client).json()
    with app.state.services.db.write() as session:
        session.get_one(File, file["id"]).expires_at = 1.0

    assert client.get(f"/v1/files/{file['id']}").status_code == 404
    assert client.get("/v1/files").json()["data"] == []


def test_deleting_the_listed_files_does_not_break_paging(client: TestClient) -> None:
    made = [upload(client).json()["id"] for _ in range(3)]
    seen: list[str] = []
    page: dict[str, Any] = {"has_more": True}
    while page["has_more"]:
        after = {"after": seen[-1]} if seen else {}
        page = client.get("/v1/files", params={"limit": 1, **after}).json()
        seen += [file["id"] for file in page["data"]]
        client.delete(f"/v1/files/{seen[-1]}")

    assert seen == made[::-1]
    assert client.get("/v1/files").json()["data"] == []


def test_files_are_listed_by_purpose(client: TestClient) -> None:
    first = upload(client, purpose="batch").json()
    second = upload(client, purpose="evals").json()

    listed = client.get("/v1/files").json()

    assert [file["id"] for file in listed["data"]] == [second["id"], first["id"]]
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (second["id"], first["id"], False)
    assert client.get("/v1/files", params={"purpose": "evals"}).json()["data"] == [second]


def test_files_of_a_purpose_are_read_by_its_index(app: FastAPI, client: TestClient) -> None:
    db, queries = app.state.services.db, list[tuple[str, Any]]()
    event.listen(db.engine, "before_cursor_execute", lambda *execution: queries.append((execution[2], execution[3])))
    client.get("/v1/files", params={"purpose": "evals", "limit": 10})

    [(query, values)] = [query for query in queries if "FROM file" in query[0]]
    with db.read() as session:
        plan = [row[3] for row in session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", values)]

    assert plan[0] == "SEARCH file USING INDEX ix_file_project_purpose (project_id=? AND purpose=?)"
    assert not [row for row in plan if row.startswith("SCAN")]


def test_every_change_of_a_file_is_in_the_audit(app: FastAPI, client: TestClient) -> None:
    created = upload(client)
    file_id = created.json()["id"]
    client.delete(f"/v1/files/{file_id}", headers={"x-request-id": "my-own-request-id"})

    with app.state.services.db.read() as session:
        rows = session.scalars(select(Audit).where(Audit.target == file_id).order_by(Audit.id)).all()
        assert [row.action for row in rows] == ["file.create", "file.delete"]
        assert [row.request_id for row in rows] == [created.headers["x-request-id"], "my-own-request-id"]
        assert all(row.actor.startswith("key:") for row in rows)


@pytest.mark.parametrize(
    ("asked", "status", "body", "range_"),
    [
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=5-99", 206, b"56789", "bytes 5-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=4-2", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
    ],
)
def test_range_header_selects_bytes_of_content(
    client: TestClient, asked: str, status: int, body: bytes | None, range_: str | None
) -> None:
    file = upload(client, b"0123456789").json()

    answer = client.get(f"/v1/files/{file['id']}/content", headers={"Range": asked})

    assert answer.status_code == status
    assert body is None or answer.content == body
    assert answer.headers.get("Content-Range") == range_
    assert int(answer.headers["Content-Length"]) == len(answer.content)


def test_a_range_of_nothing_has_no_bytes() -> None:
    assert _span("bytes=0-", 0) == (-1, -1)


def test_bytes_that_storage_has_lost_are_an_error_and_no_empty_file(app: FastAPI, client: TestClient) -> None:
    file = upload(client).json()
    storage: Storage = app.state.services.storage
    storage.delete(f"files/{file['id']}")

    assert client.get(f"/v1/files/{file['id']}/content").status_code == 404
