"""Files, stores and moments do not suffer from each other, and a document may have any length."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from jobs.clock import now
from jobs.errors import DatabaseBusy
from jobs.retrieval import documents
from jobs.retrieval.tables import VectorStore
from tests.support.ingestion import Killed, Works
from tests.support.system import eventually
from workers.retrieval.ingestion import index, parse
from workers.vectors.base import Store, VectorsUnavailable

PROSE = "The kiwi is a bird that cannot fly. " * 40
LONG = " ".join(
    f"Paragraph {n} tells of animal{n} and of plant{n}, and of nothing else at all.\n\n" for n in range(200)
)


def once(real: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """Fails the first time."""
    left = [error]

    def call(*given: Any, **named: Any) -> Any:
        if left:
            raise left.pop()
        return real(*given, **named)

    return call


def test_busy_database_fails_no_file(inline: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    store, file = inline.store(), inline.upload(PROSE)
    inline.attach(store, file)
    monkeypatch.setattr(parse.embedding_model, "cutting_of", once(parse.embedding_model.cutting_of, DatabaseBusy()))

    inline.drive()

    assert inline.statuses(store) == {file: ("completed", None)}


def test_a_long_document_is_embedded_in_slices_and_seen_whole_or_not_at_all(
    both: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "CHUNKS_AT_ONCE", 8)
    store, file = both.store(), both.upload(LONG)
    both.attach(store, file)
    both.drive(until="index")
    seen: list[int] = []
    both.vectors.after_write = lambda: seen.append(len(both.search(store, "animal7", vector_weight=0.0)))

    both.drive()

    row = both.row(store, file)
    assert row.entries > 24
    assert len(seen) == -(-row.entries // 8)
    assert set(seen) == {0}
    assert both.search(store, "animal7", vector_weight=0.0)[0].file_id == file
    both.assert_tidy(store)


def test_a_long_document_goes_on_where_its_worker_died(both: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "CHUNKS_AT_ONCE", 8)
    store, file = both.store(), both.upload(LONG)
    both.attach(store, file)
    both.drive(until="index")
    writes: list[int] = []

    def die() -> None:
        writes.append(1)
        if len(writes) == 3:
            raise Killed

    both.vectors.after_write = die
    with pytest.raises(Killed):
        both.drive()
    asked = both.engine.texts
    both.handle_worker_death()
    both.drive()

    row = both.row(store, file)
    assert (row.status, asked) == ("completed", 24)
    assert both.engine.texts == row.entries  # none twice
    both.purge()
    both.assert_tidy(store)


def test_failed_purge_of_store_does_not_block_purge_of_other_store(
    inline: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, good = inline.store(), inline.store()
    for store in (broken, good):
        file = inline.upload(PROSE)
        inline.attach(store, file)
        inline.drive()
        inline.delete(f"/vector_stores/{store}/files/{file}")
    real = inline.vectors.inner.drop

    def drop(store: Store, keys: Any) -> int:
        if store.id == broken:
            raise ValueError("unreadable")
        return real(store, keys)

    with monkeypatch.context() as patch:
        patch.setattr(inline.vectors.inner, "drop", drop)
        with pytest.raises(AssertionError):
            inline.purge()
        assert inline.written(good) == {}
        assert inline.written(broken) != {}
    inline.purge()

    assert inline.written(broken) == {}


def test_another_store_that_cannot_be_read_is_not_needed(inline: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = inline.store(), inline.store()
    inline.attach(first, inline.upload(PROSE))
    inline.drive()
    real = inline.vectors.inner.find_vectors

    def find_vectors(store: Store, digests: Any) -> Any:
        if store.id == first:
            raise VectorsUnavailable
        return real(store, digests)

    monkeypatch.setattr(inline.vectors.inner, "find_vectors", find_vectors)
    file = inline.upload(PROSE + "!")
    inline.attach(second, file)
    inline.drive()

    assert inline.statuses(second) == {file: ("completed", None)}


def test_a_file_removed_while_its_new_version_is_made_leaves_no_text(both: Works) -> None:
    store, file = both.store(), both.upload(PROSE)
    both.attach(store, file)
    both.drive()
    job = both.attach(store, file, chunking_strategy={"type": "auto"})
    both.drive(until="index")
    both.delete(f"/vector_stores/{store}/files/{file}")
    both.ok(f"/jobs/{job}/cancel")
    both.drive()

    both.purge()

    assert both.storage.list(documents.folder(store)) == []
    assert both.written(store) == {}


def test_a_search_is_a_use(inline: Works) -> None:
    """Pass where the new time is shown before the last wait ends."""
    store = inline.store(expires_after={"anchor": "last_active_at", "days": 2})
    inline.attach(store, inline.upload(PROSE))
    inline.drive()
    with inline.db.write() as session:
        old = {"active_at": now() - 86_400, "expires_at": now() + 86_400}
        session.execute(update(VectorStore).where(VectorStore.id == store).values(old))

    inline.search(store, "a bird")

    def left() -> float:
        return float(inline.get(f"/vector_stores/{store}")["expires_at"]) - now()

    eventually(lambda: left() == pytest.approx(2 * 86_400, abs=60), 10, "the use is noted")
