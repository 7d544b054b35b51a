"""A second index beside the one in use: built, kept in step, switched to and back, removed, whoever dies meanwhile."""

import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select, update

from jobs.clock import now
from jobs.errors import Conflict
from jobs.inference.interactive import AnswerEntry, QueuedRequest
from jobs.ledger.states import JobState
from jobs.ledger.tables import Audit
from jobs.retrieval import attachments, indexes, reindexing
from jobs.retrieval.searches import Search, SearchResults, decode_search, encode
from jobs.retrieval.tables import VectorRemoval, VectorStore
from tests.support.ingestion import MODEL, SMALL, Killed, Works, refuses
from workers.engines.port import Answer, Request
from workers.inference.peer_client import PeerClient
from workers.retrieval import verification
from workers.vectors.open_vectors import store_of

TEXTS = [f"Number {name} is a word of its own. " * 60 for name in ("one", "two", "three")]
LARGE = {"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 0}}
BROKEN = b"\x7fELF\x00\x01"


def build(inline: Works, store: str, **fields: Any) -> str:
    wanted = fields or {"chunking_strategy": LARGE, "embedding_dimensions": 32}
    return str(inline.ok(f"/vector_stores/{store}/indexes", json=wanted)["id"])


def index(inline: Works, store: str, name: str) -> dict[str, Any]:
    return inline.get(f"/vector_stores/{store}/indexes/{name}")


def status(inline: Works, store: str, name: str) -> str:
    return str(index(inline, store, name)["status"])


def switch(inline: Works, store: str, name: str, **fields: Any) -> dict[str, Any]:
    return inline.ok(f"/vector_stores/{store}/indexes/{name}/switch", json=fields)


def refused(inline: Works, store: str, name: str) -> tuple[int, str]:
    answer = inline.api.post(f"/v1/vector_stores/{store}/indexes/{name}/switch")
    return answer.status_code, answer.json()["error"]["code"]


def found(inline: Works, store: str) -> set[str]:
    return {one.file_id for one in inline.search(store, "number word", limit=50)}


def assert_true(inline: Works, *names: str) -> None:
    """Check that nothing is pending, SQL agrees with the vectors, and each index holds only what its files have."""
    inline.purge()
    assert verification.verify(inline.db, inline.vectors, inline.storage).faults == []
    for name in names:
        inline.assert_tidy(name)


def facts(inline: Works, store: str) -> dict[str, Any]:
    """Return what a client sees of a store and its files, less what differs by index or with time."""
    seen = inline.get(f"/vector_stores/{store}") | {"usage_bytes": 0, "last_active_at": 0}
    files = inline.get(f"/vector_stores/{store}/files")["data"]
    return seen | {"files": [(one["id"], one["created_at"], one["status"], one["vector_store_id"]) for one in files]}


@pytest.fixture
def filled_store(inline: Works) -> tuple[str, list[str]]:
    """Create a store with three files."""
    store, files = inline.store(), [inline.upload(text) for text in TEXTS]
    inline.batch(store, *files)
    inline.drive()
    return store, files


def test_built_switched_to_and_back(inline: Works, filled_store: tuple[str, list[str]]) -> None:
    store, files = filled_store
    before = inline.search(store, "number word", limit=50)
    shown = facts(inline, store)

    second = build(inline, store)
    assert (status(inline, store, second), status(inline, store, store)) == ("building", "active")
    inline.drive()
    assert inline.search(store, "number word", limit=50) == before
    assert inline.get(f"/vector_stores/{store}")["embedding_dimensions"] == 64
    made = index(inline, store, second)
    assert (made["status"], made["missing"], made["file_counts"]["completed"]) == ("ready", 0, 3)
    assert (made["embedding_dimensions"], made["chunking_strategy"]) == (32, LARGE)
    assert inline.job(made["job_id"]).state == JobState.SUCCEEDED

    switch(inline, store, second)
    after = inline.search(store, "number word", limit=50)
    assert {one.file_id for one in after} == set(files)
    assert len(after) < len(before)  # they are cut longer
    assert facts(inline, store) | {"embedding_dimensions": 64} == shown
    assert (status(inline, store, second), status(inline, store, store)) == ("active", "previous")

    switch(inline, store, store)
    assert inline.search(store, "number word", limit=50) == before
    assert facts(inline, store) == shown
    assert (status(inline, store, second), status(inline, store, store)) == ("previous", "active")
    assert_true(inline, store, second)


@pytest.mark.verify
def test_worker_death_leaves_first_index_intact_and_second_completes(
    inline: Works, filled_store: tuple[str, list[str]]
) -> None:
    store, files = filled_store
    inline.attach(store, inline.upload(BROKEN, "a.bin"))
    inline.drive()
    before, points = inline.search(store, "number word", limit=50), 0
    step = 1 if inline.db.sqlite else 3  # what is the same on both is not asked of both
    for at in range(1, 200, step):
        second = build(inline, store)
        inline.reaper.arm(at)
        try:
            inline.drive()
        except Killed:
            points += 1
        else:
            inline.reaper.armed = False
            break
        if status(inline, store, second) != "ready":
            assert refused(inline, store, second) == (409, "index_incomplete")
        assert inline.search(store, "number word", limit=50) == before
        inline.handle_worker_death()
        inline.drive()

        assert inline.search(store, "number word", limit=50) == before
        made = index(inline, store, second)
        assert (made["status"], made["file_counts"]["completed"], made["file_counts"]["failed"]) == ("ready", 3, 1)
        switch(inline, store, second)
        assert found(inline, store) == set(files)
        switch(inline, store, store)
        assert_true(inline, store, second)
        inline.delete(f"/vector_stores/{store}/indexes/{second}")

    assert_true(inline, store, second)
    assert set(inline.vectors.stores()) == {store, second}
    assert points * step >= 15


def test_changes_during_the_build_reach_both_indexes(inline: Works, filled_store: tuple[str, list[str]]) -> None:
    store, files = filled_store
    second = build(inline, store)
    inline.drive(until="index")
    lazy_vectors = inline.upload("Number four is a word that comes late. " * 60)
    job = inline.attach(store, lazy_vectors, attributes={"year": 1})
    inline.delete(f"/vector_stores/{store}/files/{files[0]}")
    inline.delete(f"/files/{files[1]}")
    inline.ok(f"/vector_stores/{store}/files/{files[2]}", json={"attributes": {"year": 2}})
    inline.drive()

    wanted: Any = {"type": "eq", "key": "year", "value": 2}
    for name in (second, store):
        switch(inline, store, name)
        assert found(inline, store) == {lazy_vectors, files[2]}
        assert {one.file_id for one in inline.search(store, "number word", filters=wanted)} == {files[2]}
        assert inline.get(f"/vector_stores/{store}/files/{lazy_vectors}")["attributes"] == {"year": 1}
    assert inline.row(second, lazy_vectors).chunking == LARGE
    assert inline.row(store, lazy_vectors).chunking == SMALL
    assert inline.told(job).count(("vector_store.file.completed", lazy_vectors)) == 1
    beside = inline.row(second, lazy_vectors).job_id
    assert [kind for kind, _ in inline.told(beside) if kind.startswith("vector_store")] == []
    assert_true(inline, store, second)


def test_switch_routes_new_files_to_new_index_and_syncs_old_index(
    inline: Works, filled_store: tuple[str, list[str]]
) -> None:
    store, files = filled_store
    second = build(inline, store)
    inline.drive()
    switch(inline, store, second)
    lazy_vectors = inline.upload("Number five is a word for afterwards. " * 60)

    batch = inline.batch(store, lazy_vectors)
    assert inline.get(f"/vector_stores/{store}/files/{lazy_vectors}")["vector_store_id"] == store
    inline.drive()

    shown = inline.get(f"/vector_stores/{store}/file_batches/{batch}")
    assert (shown["vector_store_id"], shown["status"]) == (store, "completed")
    assert [one["id"] for one in inline.get(f"/vector_stores/{store}/file_batches/{batch}/files")["data"]] == [
        lazy_vectors
    ]
    assert inline.row(second, lazy_vectors).job_id == batch
    assert inline.get(f"/vector_stores/{store}/files/{lazy_vectors}/content")["data"][0]["text"].startswith(
        "Number five"
    )
    assert found(inline, store) == {*files, lazy_vectors}
    inline.delete(f"/vector_stores/{store}/files/{files[0]}")
    switch(inline, store, store)
    assert found(inline, store) == {*files[1:], lazy_vectors}
    assert_true(inline, store, second)


def test_a_build_that_is_cancelled_is_not_switched_to_until_it_is_synced(
    inline: Works, filled_store: tuple[str, list[str]]
) -> None:
    store, files = filled_store
    second = build(inline, store)
    inline.drive(until="index")
    inline.ok(f"/jobs/{index(inline, store, second)['job_id']}/cancel")
    inline.drive()

    made = index(inline, store, second)
    assert (made["status"], made["missing"]) == ("cancelled", 3)
    assert refused(inline, store, second) == (409, "index_incomplete")
    assert found(inline, store) == set(files)
    again = inline.ok(f"/vector_stores/{store}/indexes/{second}/sync")
    assert (again["status"], again["job_id"] != made["job_id"]) == ("building", True)
    inline.drive()

    assert status(inline, store, second) == "ready"
    assert inline.row(second, files[0]).chunking == LARGE
    assert inline.ok(f"/vector_stores/{store}/indexes/{second}/sync")["job_id"] == again["job_id"]  # nothing is missing
    switch(inline, store, second)
    assert_true(inline, store, second)


def test_a_file_that_fails_in_it_is_named_and_its_job_is_retried(
    inline: Works, filled_store: tuple[str, list[str]]
) -> None:
    store, files = filled_store
    inline.engine.fault = refuses("two")
    second = build(inline, store)
    inline.drive()
    inline.engine.fault = None

    made = index(inline, store, second)
    assert (made["status"], made["missing"], made["file_counts"]["failed"]) == ("failed", 1, 1)
    [listed] = inline.get(f"/vector_stores/{store}/indexes/{second}/files?filter=failed")["data"]
    assert (listed["id"], listed["last_error"]["code"]) == (files[1], "server_error")
    assert inline.get(f"/vector_stores/{store}/files/{files[1]}")["status"] == "completed"
    assert inline.get(f"/jobs/{made['job_id']}")["vector_store_index_id"] == second
    answer = inline.api.post(f"/v1/vector_stores/{store}/indexes/{second}/switch")
    assert (answer.status_code, files[1] in answer.json()["error"]["message"]) == (409, True)
    assert switch(inline, store, second, allow_missing=True)["status"] == "active"
    assert found(inline, store) == {files[0], files[2]}
    switch(inline, store, store)
    assert found(inline, store) == set(files)

    inline.ok(f"/jobs/{made['job_id']}/retry")
    inline.drive()
    assert index(inline, store, second)["missing"] == 0
    assert found(inline, store) == set(files)
    assert_true(inline, store, second)


def test_a_file_that_failed_before_is_shown_as_failed_afterwards_and_can_be_retried(inline: Works) -> None:
    store, good, bad = inline.store(), inline.upload(TEXTS[0]), inline.upload(TEXTS[1])
    inline.engine.fault = refuses("two")
    batch = inline.batch(store, good, bad)
    inline.drive()
    inline.engine.fault = None
    second = build(inline, store)
    inline.drive()
    switch(inline, store, second)

    counts = inline.get(f"/vector_stores/{store}")["file_counts"]
    assert (counts["completed"], counts["failed"], counts["total"]) == (1, 1, 2)
    assert inline.get(f"/vector_stores/{store}/files/{bad}")["last_error"]["code"] == "server_error"
    inline.ok(f"/jobs/{batch}/retry")
    inline.drive()

    assert found(inline, store) == {good, bad}
    assert index(inline, store, store)["missing"] == 1  # what is behind says so
    inline.ok(f"/vector_stores/{store}/indexes/{store}/sync")
    inline.drive()
    assert index(inline, store, store)["missing"] == 0
    assert_true(inline, store, second)


def test_the_first_index_is_removed_with_a_receipt_and_the_store_stays(
    inline: Works, filled_store: tuple[str, list[str]]
) -> None:
    store, files = filled_store
    second = build(inline, store)
    inline.drive()
    answer = inline.api.delete(f"/v1/vector_stores/{store}/indexes/{store}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "index_active")
    switch(inline, store, second)

    inline.delete(f"/vector_stores/{store}/indexes/{store}")

    assert [one["id"] for one in inline.get(f"/vector_stores/{store}/indexes")["data"]] == [second]
    assert inline.api.get(f"/v1/vector_stores/{store}/indexes/{store}").status_code == 404
    assert refused(inline, store, store)[0] == 404
    assert_true(inline, store, second)
    assert (inline.written(store), inline.rows(store)) == ({}, [])
    assert found(inline, store) == set(files)
    with inline.db.read() as session:
        receipts = session.scalars(select(Audit.action).where(Audit.target == store, Audit.actor == "purge")).all()
    assert receipts == ["vectors.purge_store"]
    lazy_vectors = inline.upload("Number six is a word in one index alone. " * 20)
    inline.attach(store, lazy_vectors)
    inline.drive()
    assert found(inline, store) == {*files, lazy_vectors}
    third = build(inline, store, embedding_dimensions=16)
    inline.drive()
    switch(inline, store, third)
    inline.delete(f"/vector_stores/{store}/indexes/{second}")
    assert_true(inline, store, third)
    assert inline.vectors.stores() == [third]


@pytest.mark.parametrize("stage", ["plan", "parse", "index", "finish"])
def test_an_index_removed_while_it_is_filled_leaves_nothing(
    inline: Works, filled_store: tuple[str, list[str]], stage: str
) -> None:
    store, files = filled_store
    second = build(inline, store)
    inline.drive(until=stage)

    inline.delete(f"/vector_stores/{store}/indexes/{second}")
    inline.drive()

    assert_true(inline, store)
    assert (inline.written(second), list(inline.storage.list(f"documents/{second}"))) == ({}, [])
    assert found(inline, store) == set(files)


def test_the_first_index_removed_while_a_worker_writes_to_it_leaves_nothing(
    inline: Works, filled_store: tuple[str, list[str]]
) -> None:
    store, _ = filled_store
    second = build(inline, store)
    inline.drive()
    switch(inline, store, second)

    def remove() -> None:
        inline.vectors.before_write = bool
        inline.delete(f"/vector_stores/{store}/indexes/{store}")
        inline.purge()

    inline.attach(store, inline.upload("Number seven is a word that comes too late. " * 20))
    [own] = [message for message in inline.messages() if inline.job(message.job_id).payload.get("index_id") is None]
    inline.vectors.before_write = remove
    while messages := [message for message in inline.messages() if message.job_id == own.job_id]:
        inline.handle(messages[0])
    inline.drive()

    assert_true(inline, second)
    assert (inline.written(store), inline.rows(store)) == ({}, [])


@pytest.mark.parametrize("expires", [False, True], ids=["deleted", "expired"])
def test_a_store_that_goes_goes_with_all_its_indexes(
    inline: Works, filled_store: tuple[str, list[str]], expires: bool
) -> None:
    store, _ = filled_store
    inline.ok(f"/vector_stores/{store}", json={"expires_after": {"anchor": "last_active_at", "days": 1}})
    second = build(inline, store)
    inline.drive()
    switch(inline, store, second)
    third = build(inline, store, embedding_dimensions=16)
    inline.drive(until="index")

    if expires:
        with inline.db.write() as session:
            attachments.touch(session, store, now() - 90_000)
            assert attachments.expire(session, now(), 10) == 3
    else:
        inline.delete(f"/vector_stores/{store}")
    inline.drive()

    with inline.db.read() as session:
        messages = session.scalars(select(VectorRemoval.store_id).where(VectorRemoval.what == "store")).all()
    assert set(messages) == {store, second, third}
    inline.purge()
    assert verification.verify(inline.db, inline.vectors, inline.storage).faults == []
    for name in (store, second, third):
        assert (inline.written(name), inline.rows(name)) == ({}, [])
        assert list(inline.storage.list(f"documents/{name}")) == []
    assert inline.vectors.stores() == []


def test_every_use_of_a_store_keeps_all_its_indexes(inline: Works, filled_store: tuple[str, list[str]]) -> None:
    store, _ = filled_store
    second = build(inline, store)
    inline.drive()
    inline.ok(f"/vector_stores/{store}", json={"expires_after": {"anchor": "last_active_at", "days": 2}})
    switch(inline, store, second)

    def until() -> list[float | None]:
        with inline.db.read() as session:
            return [session.get_one(VectorStore, name).expires_at for name in (store, second)]

    first = until()
    with inline.db.write() as session:
        session.execute(update(VectorStore).values(active_at=1.0))
        row = session.get_one(VectorStore, second)
    attachments.note_use(inline.db, row)

    assert None not in first
    assert len(set(first)) == len(set(until())) == 1
    assert until() > first


def test_an_index_that_is_not_in_use_is_verified_and_mended_too(
    inline: Works, filled_store: tuple[str, list[str]]
) -> None:
    store, files = filled_store
    second = build(inline, store)
    inline.drive()
    lost = inline.row(second, files[0])
    with inline.db.read() as session:
        place = store_of(session.get_one(VectorStore, second))
    inline.vectors.drop(place, [str(lost.document)])

    verdict = verification.verify(inline.db, inline.vectors, inline.storage)
    assert [(fault.store_id, [row.id for row in fault.missing]) for fault in verdict.faults] == [(second, [files[0]])]
    assert (verdict.stores, verdict.files) == (1, 6)
    verification.repair(inline.db, verdict)
    inline.drive()

    switch(inline, store, second)
    assert found(inline, store) == set(files)
    assert inline.row(second, files[0]).chunking == LARGE
    assert_true(inline, store, second)


def test_file_search_asks_the_index_in_use_and_knows_no_other(
    inline: Works, filled_store: tuple[str, list[str]]
) -> None:
    store, _ = filled_store
    second = build(inline, store)
    inline.drive()
    peers, project = PeerClient(inline.context), inline.current(store).project_id
    request = Request("/v1/responses", {}, "req_1", 0, project)

    def placed(name: str) -> Any:
        return peers._find_index(request, Search(model="", store_id=name, queries=("x",)))

    assert placed(store)[1].id == store
    switch(inline, store, second)

    queue, index = placed(store)
    assert (queue, index.id, index.model) == ("gpu.embed", second, MODEL)
    assert placed(second).status == 404


@pytest.mark.parametrize("goes", [True, False])
async def test_file_search_is_repeated_only_after_index_switch(
    inline: Works, filled_store: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, goes: bool
) -> None:
    store, _ = filled_store
    second = build(inline, store)
    inline.drive()
    peers, searched = PeerClient(inline.context), []

    async def submit(_line: str, queued: QueuedRequest, _served: Any) -> AsyncIterator[AnswerEntry]:
        searched.append(decode_search(queued.body).store_id)
        if goes:
            switch(inline, store, second)
        found = searched[-1] == second
        yield AnswerEntry("end", encode(SearchResults(())) if found else b'{"error": {}}', 200 if found else 404)

    monkeypatch.setattr(peers._client, "submit", submit)
    request = Request("/v1/responses", {}, "req_1", 0, inline.current(store).project_id)

    answer = await peers.search(request, Search(model="", store_id=store, queries=("x",)))

    assert searched == ([store, second] if goes else [store])
    assert answer == () if goes else isinstance(answer, Answer)


def test_new_index_with_same_chunking_reuses_embeddings(inline: Works, filled_store: tuple[str, list[str]]) -> None:
    store, _ = filled_store
    asked = inline.engine.texts
    same = build(inline, store, chunking_strategy=SMALL)
    inline.drive()

    assert inline.engine.texts == asked
    assert status(inline, store, same) == "ready"


def test_an_index_is_no_store(inline: Works, filled_store: tuple[str, list[str]]) -> None:
    store, _ = filled_store
    second = build(inline, store)
    inline.drive()

    assert [one["id"] for one in inline.get("/vector_stores")["data"]] == [store]
    for path in (f"/{second}", f"/{second}/files", f"/{second}/indexes"):
        assert inline.api.get(f"/v1/vector_stores{path}").status_code == 404
    assert inline.api.delete(f"/v1/vector_stores/{second}").status_code == 404
    job = inline.get(f"/jobs/{index(inline, store, second)['job_id']}")
    assert (job["vector_store_id"], job["status"]) == (store, "completed")
    assert job["model"] == MODEL


@pytest.mark.parametrize("published_first", [True, False])
def test_concurrent_switch_and_publish_are_serialised(
    inline: Works, filled_store: tuple[str, list[str]], published_first: bool
) -> None:
    """A file that its client knows as completed is never missing after a switch."""
    store, _ = filled_store
    second = build(inline, store)
    inline.drive()
    lazy_vectors = inline.upload("Number eight is published at this moment. " * 20)
    inline.attach(store, lazy_vectors)

    def publish() -> None:
        row = inline.row(store, lazy_vectors)
        made = attachments.Made(row.line, lazy_vectors, row.version, f"{row.version}.9", 1, 1, "r")
        with inline.db.write() as session:
            kept = indexes.keep(session, store)
            assert kept is not None
            attachments.publish(session, kept, [made])
            order.append("published")
            hold.wait(0.5 if published_first else 0)

    def change() -> bool:
        with inline.db.write() as session:
            row = indexes.lock(session, store)
            assert row is not None
            target = session.get_one(VectorStore, second)
            order.append("looking")
            hold.wait(0 if published_first else 0.5)
            try:
                reindexing.switch(session, row, target)
            except Conflict:
                return False
            order.append("switched")
            return True

    order: list[str] = []
    hold = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        both = [publish, change] if published_first else [change, publish]
        running = [pool.submit(both[0])]
        while not order:
            threading.Event().wait(0.01)
        running.append(pool.submit(both[1]))
        results = [one.result(30) for one in running]

    if published_first:  # it is in the index in use, and in the other one on its way
        assert (order, results) == (["published", "looking"], [None, False])
    else:
        assert (order, results) == (["looking", "switched", "published"], [True, None])
    assert inline.row(second, lazy_vectors).status == "in_progress"


def test_build_during_store_deletion_leaves_no_index(inline: Works, filled_store: tuple[str, list[str]]) -> None:
    """The one begins while the other's transaction is open, and waits."""
    store, _ = filled_store

    def make() -> int:
        fields = {"embedding_dimensions": 16}
        return int(inline.api.post(f"/v1/vector_stores/{store}/indexes", json=fields).status_code)

    with ThreadPoolExecutor(1) as pool:
        with inline.db.write() as session:
            row = indexes.lock(session, store)
            assert row is not None
            coming = pool.submit(make)
            threading.Event().wait(0.3)
            attachments.remove_store(session, row)
        assert coming.result(30) == 404

    with inline.db.read() as session:
        assert session.scalars(select(VectorStore)).all() == []
    inline.purge()
    assert inline.vectors.stores() == []


def test_file_attached_during_build_is_in_both_indexes(inline: Works, filled_store: tuple[str, list[str]]) -> None:
    """The one begins while the other's transaction is open, and waits."""
    store, files = filled_store
    lazy_vectors = inline.upload("Number nine comes at the same moment. " * 20)

    with ThreadPoolExecutor(1) as pool:
        with inline.db.write() as session:
            row = indexes.lock(session, store)
            assert row is not None
            facts: Any = {"model": MODEL, "dimensions": 16, "chunking": None, "actor": "test"}
            second = reindexing.build(session, row, **facts).id
            coming = pool.submit(inline.attach, store, lazy_vectors)
            threading.Event().wait(0.3)
        coming.result(30)
    inline.drive()

    switch(inline, store, second)
    assert found(inline, store) == {*files, lazy_vectors}
    assert_true(inline, store, second)


def test_each_vector_database_keeps_indexes_apart(both: Works) -> None:
    store, files = both.store(), [both.upload(text) for text in TEXTS]
    both.batch(store, *files)
    both.drive()

    second = build(both, store)
    both.drive()
    assert set(both.vectors.stores()) == {store, second}
    assert_true(both, store, second)
    switch(both, store, second)
    assert found(both, store) == set(files)
    both.delete(f"/vector_stores/{store}/indexes/{store}")
    assert_true(both, store, second)

    assert found(both, store) == set(files)
    assert sum(both.written(store).values()) == 0
    assert sum(both.written(second).values()) == sum(row.entries for row in both.rows(second)) > 0
