"""Files in a vector store and batches of them: attached, listed, described, removed."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai.types.vector_stores import VectorStoreFile as OpenAIFile
from openai.types.vector_stores import VectorStoreFileBatch as OpenAIBatch
from sqlalchemy import select, update

from jobs.ledger import ledger, shards
from jobs.ledger.tables import Audit, Job, Shard
from jobs.queues import Queue, Task
from jobs.retrieval.tables import VectorRemoval, VectorStoreFile
from tests.unit.api.retrieval.test_vector_stores import count, error_of, made, upload

SMALL = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}


@pytest.fixture
def store(client: TestClient) -> str:
    return made(client, chunking_strategy=SMALL)


def attach(client: TestClient, store: str, file: str, key: str | None = None, **fields: Any) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post(f"/v1/vector_stores/{store}/files", json={"file_id": file, **fields}, headers=headers)


def batch(client: TestClient, store: str, key: str | None = None, **fields: Any) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post(f"/v1/vector_stores/{store}/file_batches", json=fields, headers=headers)


def row(app: FastAPI, store: str, file: str) -> VectorStoreFile:
    with app.state.services.db.read() as session:
        found: VectorStoreFile = session.get_one(VectorStoreFile, (store, file))
        return found


def test_an_attached_file_is_shown_with_every_key(client: TestClient, store: str) -> None:
    file = upload(client)

    shown = attach(client, store, file, attributes={"a": "b", "n": 1, "f": 0.5, "t": True}).json()

    assert shown | {"created_at": 0} == {
        "id": file,
        "object": "vector_store.file",
        "created_at": 0,
        "vector_store_id": store,
        "usage_bytes": 0,
        "status": "in_progress",
        "last_error": None,
        "chunking_strategy": SMALL,
        "attributes": {"a": "b", "n": 1, "f": 0.5, "t": True},
        "filename": "a.txt",
        "stage": "waiting_to_be_parsed",
    }
    answer = client.get(f"/v1/vector_stores/{store}/files/{file}")
    assert answer.json() == shown
    assert answer.headers["openai-poll-after-ms"] == "300"
    assert OpenAIFile.model_validate(shown, strict=True).id == file


def test_a_file_in_progress_shows_its_stage(app: FastAPI, client: TestClient, store: str) -> None:
    """By the shard of its job: two shards of two files, of which the first is parsed and embedded first."""
    db, files = app.state.services.db, [upload(client) for _ in range(4)]
    job_id = batch(client, store, file_ids=files).json()["id"]

    def stages() -> list[str]:
        shown = {row["id"]: row for row in client.get(f"/v1/vector_stores/{store}/files").json()["data"]}
        assert shown[files[3]] == client.get(f"/v1/vector_stores/{store}/files/{files[3]}").json()
        return [shown[file]["stage"] for file in files]

    seen = [stages()]
    with db.write() as session:
        claim = ledger.claim(session, job_id, Task.PLAN, "cpu-1")
        assert claim is not None
        places = {"offset": 0, "length": 0, "queue": Queue.INGEST}
        cut = [Shard(job_id=job_id, n=n, first_line=2 * n, lines=2, **places) for n in range(2)]
        shards.cut(session, claim, Queue.INGEST, cut)
        ledger.begin_running(session, claim, total=4, model="m", queue=Queue.EMBED)
    seen.append(stages())
    for queue in (Queue.INGEST, None):
        with db.write() as session:
            parsing = shards.claim(session, job_id, 0, "cpu-1", queue=queue)
            assert parsing is not None
        seen.append(stages())
        if queue is not None:
            with db.write() as session:
                shards.requeue_to_job_queue(session, parsing)
            seen.append(stages())

    first = ["waiting_to_be_parsed", "waiting_to_be_parsed", "parsing", "waiting_to_be_embedded", "embedding"]
    assert seen == [[stage, stage, "waiting_to_be_parsed", "waiting_to_be_parsed"] for stage in first]
    with db.write() as session:
        session.execute(update(VectorStoreFile).values(status="completed"))
    assert all("stage" not in row for row in client.get(f"/v1/vector_stores/{store}/files").json()["data"])


def test_a_batch_is_shown_with_every_key(client: TestClient, store: str) -> None:
    answer = batch(client, store, file_ids=[upload(client), upload(client)])

    shown = answer.json()
    assert shown | {"id": "", "created_at": 0} == {
        "id": "",
        "object": "vector_store.files_batch",
        "created_at": 0,
        "vector_store_id": store,
        "status": "in_progress",
        "file_counts": {"in_progress": 2, "completed": 0, "failed": 0, "cancelled": 0, "total": 2},
    }
    assert shown["id"].startswith("vsfb_")
    again = client.get(f"/v1/vector_stores/{store}/file_batches/{shown['id']}")
    assert (again.json(), again.headers["openai-poll-after-ms"]) == (shown, "300")
    assert OpenAIBatch.model_validate(shown, strict=True).id == shown["id"]


def test_batch_files_have_shared_or_own_attributes_and_chunking(app: FastAPI, client: TestClient, store: str) -> None:
    one, other = upload(client), upload(client)

    batch(client, store, file_ids=[one], attributes={"n": 1})
    batch(
        client, store, attributes={"n": 9},
        files=[{"file_id": other, "attributes": {"n": 2}, "chunking_strategy": {"type": "auto"}}],
    )  # fmt: skip

    assert (row(app, store, one).attributes, row(app, store, one).chunking) == ({"n": 1}, SMALL)
    assert row(app, store, other).attributes == {"n": 2}
    assert row(app, store, other).chunking["static"]["max_chunk_size_tokens"] == 800


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"file_ids": []},
        {"files": []},
        {"file_ids": ["file-x"], "files": [{"file_id": "file-x"}]},
        {"file_ids": [5]},
        {"files": [{"file_id": "file-x", "more": 1}]},
        {"files": [{}]},
    ],
)
def test_batch_requires_valid_file_ids_or_files_but_not_both(
    app: FastAPI, client: TestClient, store: str, fields: Any
) -> None:
    assert batch(client, store, **fields).status_code == 400
    assert count(app, Job) == 0


@pytest.mark.parametrize(
    ("attributes", "wrong"),
    [
        ({f"k{n}": n for n in range(17)}, ""),
        ({"k" * 65: 1}, "." + "k" * 65),
        ({"k": "x" * 513}, ".k"),
        ({"k": None}, ".k"),
        ({"k": ["x"]}, ".k"),
        ({"k": {}}, ".k"),
        ({"constrained-str": []}, ".constrained-str"),
        ("x", ""),
    ],
)
@pytest.mark.parametrize("how", ["attach", "batch", "update"])
def test_attributes_have_their_limits(client: TestClient, store: str, attributes: Any, wrong: str, how: str) -> None:
    file = upload(client)
    if how == "update":
        attach(client, store, file)
        answer = client.post(f"/v1/vector_stores/{store}/files/{file}", json={"attributes": attributes})
    elif how == "batch":
        answer = batch(client, store, file_ids=[file], attributes=attributes)
    else:
        answer = attach(client, store, file, attributes=attributes)

    status, param, _ = error_of(answer)
    assert (status, param) == (400, f"attributes{wrong}")


def test_attributes_at_limits_are_stored(client: TestClient, store: str) -> None:
    attributes = {f"{n:064d}": "x" * 512 for n in range(16)}

    assert attach(client, store, upload(client), attributes=attributes).json()["attributes"] == attributes


@pytest.mark.parametrize("how", ["attach", "batch"])
def test_an_overlap_of_more_than_half_is_refused(client: TestClient, store: str, how: str) -> None:
    wrong = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 51}}
    file = upload(client)

    given = {"chunking_strategy": wrong}
    answer = attach(client, store, file, **given) if how == "attach" else batch(client, store, file_ids=[file], **given)

    assert error_of(answer)[:2] == (400, "chunking_strategy.static")


@pytest.mark.parametrize("how", ["attach", "batch"])
def test_repeated_create_makes_single_job(app: FastAPI, client: TestClient, store: str, how: str) -> None:
    file = upload(client)
    make = {
        "attach": lambda **more: attach(client, store, file, "k", **more),
        "batch": lambda **more: batch(client, store, "k", file_ids=[file], **more),
    }[how]

    first, again, other = make(), make(), make(attributes={"n": 1})

    assert again.text == first.text
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (other.status_code, count(app, Job)) == (422, 1)


def test_foreign_deleted_or_unknown_file_is_refused(
    app: FastAPI, client: TestClient, stranger: TestClient, store: str
) -> None:
    deleted, good = upload(client), upload(client)
    client.delete(f"/v1/files/{deleted}")

    for file in (upload(stranger), deleted, "file-unknown"):
        assert error_of(attach(client, store, file)) == (404, "file_id", "not_found")
        assert error_of(batch(client, store, file_ids=[good, file])) == (404, "file_id", "not_found")

    assert (count(app, Job), count(app, VectorStoreFile)) == (0, 0)


def test_lists_go_both_ways_and_by_status(app: FastAPI, client: TestClient, store: str) -> None:
    files = [upload(client) for _ in range(5)]
    for file in files:
        attach(client, store, file)
    with app.state.services.db.write() as session:
        for file, status in zip(files, ("completed", "failed", "cancelled", "completed"), strict=False):
            session.execute(update(VectorStoreFile).where(VectorStoreFile.id == file).values(status=status))

    def ask(**query: Any) -> tuple[list[str], bool]:
        found = client.get(f"/v1/vector_stores/{store}/files", params=query).json()
        assert (found["first_id"], found["last_id"]) == (
            (found["data"][0]["id"], found["data"][-1]["id"]) if found["data"] else (None, None)
        )
        return [file["id"] for file in found["data"]], found["has_more"]

    assert ask() == (files[::-1], False)
    assert ask(limit=2, after=files[3]) == ([files[2], files[1]], True)
    assert ask(limit=2, before=files[1]) == ([files[3], files[2]], True)
    assert ask(order="asc", limit=2, before=files[3]) == ([files[1], files[2]], True)
    assert ask(filter="completed") == ([files[3], files[0]], False)
    assert ask(filter="completed", after=files[3]) == ([files[0]], False)
    assert [ask(filter=name)[0] for name in ("failed", "cancelled", "in_progress")] == [
        [files[1]], [files[2]], [files[4]],
    ]  # fmt: skip
    counts = client.get(f"/v1/vector_stores/{store}").json()["file_counts"]
    assert counts == {"in_progress": 1, "completed": 2, "failed": 1, "cancelled": 1, "total": 5}
    assert client.get(f"/v1/vector_stores/{store}/files", params={"filter": "expired"}).status_code == 400


def test_a_batchs_files_are_its_own(app: FastAPI, client: TestClient, store: str) -> None:
    mine, others = [upload(client) for _ in range(3)], upload(client)
    first = batch(client, store, file_ids=mine).json()["id"]
    batch(client, store, file_ids=[others])
    with app.state.services.db.write() as session:
        session.execute(update(VectorStoreFile).where(VectorStoreFile.id == mine[0]).values(status="failed"))

    def ask(**query: Any) -> set[str]:
        found = client.get(f"/v1/vector_stores/{store}/file_batches/{first}/files", params=query).json()
        return {file["id"] for file in found["data"]}

    assert ask() == set(mine)
    assert ask(filter="failed") == {mine[0]}
    assert len(ask(limit=2)) == 2
    page = client.get(
        f"/v1/vector_stores/{store}/file_batches/{first}/files", params={"limit": 1, "order": "asc"}
    ).json()
    assert ask(order="asc", after=page["last_id"]) == set(mine) - {page["last_id"]}
    assert ask(order="asc", before=page["last_id"]) == set()


def test_a_batch_belongs_to_its_store_and_its_project(client: TestClient, stranger: TestClient, store: str) -> None:
    made_batch = batch(client, store, file_ids=[upload(client)]).json()["id"]
    single = attach(client, store, upload(client)).json()["id"]
    elsewhere = made(client)

    for path in ("", "/files", "/cancel"):
        method = "POST" if path == "/cancel" else "GET"
        for place, name in ((elsewhere, made_batch), (store, "vsfb_unknown"), (store, single)):
            answer = client.request(method, f"/v1/vector_stores/{place}/file_batches/{name}{path}")
            assert error_of(answer) == (404, "batch_id", "not_found")
        answer = stranger.request(method, f"/v1/vector_stores/{store}/file_batches/{made_batch}{path}")
        assert error_of(answer) == (404, "vector_store_id", "not_found")


def test_a_single_files_job_is_no_batch(app: FastAPI, client: TestClient, store: str) -> None:
    attach(client, store, upload(client))
    with app.state.services.db.read() as session:
        job_id = session.scalars(select(Job.id)).one()

    answer = client.get(f"/v1/vector_stores/{store}/file_batches/{job_id}")

    assert error_of(answer) == (404, "batch_id", "not_found")


def test_to_cancel_twice_is_no_error_and_recorded_once(app: FastAPI, client: TestClient, store: str) -> None:
    name = batch(client, store, file_ids=[upload(client)]).json()["id"]

    answers = [client.post(f"/v1/vector_stores/{store}/file_batches/{name}/cancel") for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200]
    with app.state.services.db.read() as session:
        recorded = session.scalars(select(Audit).where(Audit.action == "vector_store.file_batch.cancel")).all()
    assert len(recorded) == 1


def test_attributes_are_replaced(client: TestClient, store: str) -> None:
    file = upload(client)
    attach(client, store, file, attributes={"a": 1})
    path = f"/v1/vector_stores/{store}/files/{file}"

    changed = client.post(path, json={"attributes": {"b": 2.5}}).json()["attributes"]
    none = client.post(path, json={"attributes": None}).json()["attributes"]

    assert (changed, none) == ({"b": 2.5}, None)
    assert client.post(path, json={}).status_code == 400
    assert client.post(f"{path}x", json={"attributes": {}}).status_code == 404


def test_a_removed_file_is_no_longer_in_the_store_and_still_a_file(
    app: FastAPI, client: TestClient, store: str
) -> None:
    file = upload(client)
    attach(client, store, file)

    answer = client.delete(f"/v1/vector_stores/{store}/files/{file}")

    assert answer.json() == {"id": file, "object": "vector_store.file.deleted", "deleted": True}
    assert error_of(client.get(f"/v1/vector_stores/{store}/files/{file}")) == (404, "file_id", "not_found")
    assert error_of(client.delete(f"/v1/vector_stores/{store}/files/{file}")) == (404, "file_id", "not_found")
    assert client.get(f"/v1/files/{file}").status_code == 200
    assert (count(app, VectorStoreFile), count(app, VectorRemoval)) == (0, 1)


def test_a_file_that_is_not_in_yet_has_no_content(client: TestClient, store: str) -> None:
    file = upload(client)
    attach(client, store, file)

    content = client.get(f"/v1/vector_stores/{store}/files/{file}/content").json()

    assert content == {"object": "vector_store.file_content.page", "data": [], "has_more": False, "next_page": None}


def test_a_file_that_failed_says_why(app: FastAPI, client: TestClient, store: str) -> None:
    file = upload(client)
    attach(client, store, file)
    with app.state.services.db.write() as session:
        session.execute(update(VectorStoreFile).values(status="failed", error_code="invalid_file", error_message="No."))

    answer = client.get(f"/v1/vector_stores/{store}/files/{file}")

    assert answer.json()["last_error"] == {"code": "invalid_file", "message": "No."}
    assert "openai-poll-after-ms" not in answer.headers


HOOK = "https://192.0.43.8/hook"
SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
both = pytest.mark.parametrize("how", ["files", "file_batches"])


def job_of(app: FastAPI, store: str, file: str) -> Job:
    with app.state.services.db.read() as session:
        job: Job = session.get_one(Job, row(app, store, file).job_id)
        return job


def bring_in(client: TestClient, store: str, how: str, file: str, webhook: Any) -> Any:
    """Twice under one key is once."""
    if how == "files":
        return attach(client, store, file, "k1", webhook=webhook)
    return batch(client, store, "k1", file_ids=[file], webhook=webhook)


@both
def test_an_own_webhook_reaches_the_job(app: FastAPI, client: TestClient, store: str, how: str) -> None:
    file = upload(client)

    shown = bring_in(client, store, how, file, {"url": HOOK, "secret": SECRET}).json()

    assert shown["webhook"] == {"url": HOOK, "signing_secret": None}
    job = job_of(app, store, file)
    assert (job.webhook_url, job.webhook_secret) == (HOOK, SECRET)


@both
def test_generated_webhook_secret_is_returned_only_by_create(
    app: FastAPI, client: TestClient, store: str, how: str
) -> None:
    file = upload(client)

    shown = bring_in(client, store, how, file, {"url": HOOK}).json()

    job = job_of(app, store, file)
    assert shown["webhook"]["signing_secret"] == job.webhook_secret
    for path in (f"/v1/vector_stores/{store}/{how}/{shown['id']}", f"/v1/jobs/{job.id}"):
        assert str(job.webhook_secret) not in client.get(path).text
    assert bring_in(client, store, how, file, {"url": HOOK}).json() == shown
    assert count(app, Job) == 1


@pytest.mark.parametrize(
    ("webhook", "param"),
    [
        ({"url": "http://192.0.43.8/hook"}, "webhook.url"),
        ({"url": "https://127.0.0.1/hook"}, "webhook.url"),
        ({"url": "https://[::1]/hook"}, "webhook.url"),
        ({"url": HOOK, "secret": "short"}, "webhook.secret"),
        ({"url": HOOK, "secret": "whsec_AAAA"}, "webhook.secret"),
        ({"secret": SECRET}, "webhook.url"),
        ({"url": HOOK, "more": 1}, "webhook.more"),
        ("no object", "webhook"),
    ],
)
@both
def test_a_webhook_that_may_not_be_called_brings_nothing_in(
    app: FastAPI, client: TestClient, store: str, webhook: Any, param: str, how: str
) -> None:
    answer = bring_in(client, store, how, upload(client), webhook)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert count(app, Job) == 0
    assert count(app, VectorStoreFile) == 0
