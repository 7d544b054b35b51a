"""Files into a store and out of it again: found, refused, made anew, removed."""

import hashlib
from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import select, update

from api.retrieval.schemas import show_hit
from jobs.clock import now
from jobs.ledger import pauses
from jobs.ledger.pauses import Scope
from jobs.ledger.states import JobState
from jobs.queues import Queue
from jobs.retrieval import attachments
from jobs.retrieval.tables import VectorRemoval
from jobs.webhooks.tables import Delivery, Event
from tests.support.ingestion import DIMENSIONS, Works
from workers.retrieval.ingestion import embedding
from workers.retrieval.ingestion import purge as purging
from workers.retrieval.ingestion.purge import purge

PROSE = "The kiwi is a bird that cannot fly. " * 40
OTHER = "A volcano is a mountain that opens to molten rock. " * 40
WIDE = {"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 20}}


def test_file_is_found_by_its_content(both: Works) -> None:
    store = both.store()
    kiwi, volcano = both.upload(PROSE, "kiwi.txt"), both.upload(OTHER, "volcano.md")

    batch = both.batch(store, kiwi, volcano, attributes={"year": 2026})
    both.drive()

    (best, *_) = found = both.search(store, "molten rock of a volcano")
    assert (best.file_id, best.filename, best.attributes) == (volcano, "volcano.md", {"year": 2026})
    assert "molten rock" in best.text
    assert 0 < found[-1].score <= best.score <= 1
    content = both.get(f"/vector_stores/{store}/files/{volcano}/content")["data"][0]["text"]
    assert content[best.meta["start"] : best.meta["end"]] == best.text
    shown = both.get(f"/vector_stores/{store}/file_batches/{batch}")
    assert (shown["status"], shown["file_counts"]["completed"]) == ("completed", 2)
    both.assert_tidy(store)


def test_chunk_has_hash_language_time_title_and_section(both: Works) -> None:
    page = f"<html><head><title>Birds</title><meta name=date content=2024-01-31></head><body><h1>Kiwi</h1><p>{PROSE}"
    store = both.store()
    both.attach(store, both.upload(page, "kiwi.html"))
    both.drive()

    found = both.search(store, "bird")

    for one in found:
        shown = show_hit(one, ["chunk"])
        assert shown.chunk is not None
        assert shown.chunk.sha256 == hashlib.sha256(one.text.encode()).hexdigest()
        assert (shown.chunk.language, shown.chunk.time) == ("en", "2024-01-31")
        assert (shown.chunk.title, shown.chunk.section, shown.filename) == ("Birds", ["Kiwi"], "kiwi.html")
    assert len(found) > 1


def test_chunk_of_old_entry_lacks_newer_metadata(inline: Works) -> None:
    store = inline.store()
    inline.attach(store, inline.upload(PROSE))
    inline.drive()
    [one, *_] = inline.search(store, "bird")
    old = {name: one.meta[name] for name in ("start", "end", "tokens")}

    facts = show_hit(replace(one, meta=old), ["chunk"]).chunk

    assert facts is not None
    assert (facts.sha256, facts.language, facts.time, facts.start) == (None, None, None, one.meta["start"])


def test_counts_bytes_and_tokens_are_the_sums_of_their_parts(inline: Works) -> None:
    store = inline.store()
    files = [inline.upload(f"{PROSE} {n}") for n in range(7)]

    batch = inline.batch(store, *files)
    inline.drive()

    rows = inline.rows(store)
    shown = inline.get(f"/vector_stores/{store}")
    assert shown["usage_bytes"] == sum(row.usage_bytes for row in rows)
    assert shown["file_counts"] == {"in_progress": 0, "completed": 7, "failed": 0, "cancelled": 0, "total": 7}
    assert (shown["status"], shown["embedding_dimensions"]) == ("completed", DIMENSIONS)
    assert all(row.usage_bytes > 4 * DIMENSIONS * row.entries > 0 for row in rows)
    job = inline.job(batch)
    assert (job.state, job.completed, job.failed, job.total) == (JobState.SUCCEEDED, 7, 0, 7)
    assert job.input_tokens == sum(shard.input_tokens for shard in inline.shards(batch)) > 0
    assert [shard.lines for shard in inline.shards(batch)] == [3, 3, 1]
    assert sum(inline.written(store).values()) == sum(row.entries for row in rows)


def test_a_refused_file_fails_with_its_code_and_its_neighbours_complete(inline: Works) -> None:
    store = inline.store()
    good, zipped, other = inline.upload(PROSE), inline.upload(b"\x7fELF\x00\x01", "a.bin"), inline.upload(OTHER)

    batch = inline.batch(store, good, zipped, other)
    inline.drive()

    statuses = inline.statuses(store)
    assert statuses == {
        good: ("completed", None), zipped: ("failed", "unsupported_file"), other: ("completed", None),
    }  # fmt: skip
    shown = inline.get(f"/vector_stores/{store}/files/{zipped}")
    assert shown["last_error"]["code"] == "unsupported_file"
    assert shown["last_error"]["message"]
    assert sorted(inline.told(batch)) == sorted(
        [
            ("vector_store.file.failed", zipped),
            ("vector_store.file.completed", good),
            ("vector_store.file.completed", other),
            ("job.running", batch),
            ("job.finishing", batch),
            ("vector_store.file_batch.completed", batch),
        ]
    )


def test_each_file_and_batch_get_single_event(inline: Works) -> None:
    kinds = ["vector_store.file.completed", "vector_store.file.failed", "vector_store.file_batch.completed"]
    inline.ok("/webhook_endpoints", json={"name": "n", "url": "https://192.0.43.8/hook", "event_types": kinds})
    store = inline.store()

    inline.batch(store, inline.upload(PROSE), inline.upload(OTHER), inline.upload(b"\x7fELF\x00\x01", "a.bin"))
    inline.attach(store, inline.upload(f"{PROSE} alone"))
    inline.drive()

    with inline.db.read() as session:
        messages = session.scalars(select(Event.type).join(Delivery, Delivery.event_id == Event.id)).all()
    assert Counter(messages) == {kinds[0]: 3, kinds[1]: 1, kinds[2]: 1}


def test_batch_webhook_receives_file_and_batch_events(inline: Works) -> None:
    store = inline.store()
    hook = {"url": "https://192.0.43.8/hook"}

    batch = inline.batch(store, inline.upload(PROSE), inline.upload(b"\x7fELF\x00\x01", "a.bin"), webhook=hook)
    single = inline.attach(store, inline.upload(OTHER), webhook=hook)
    inline.drive()

    with inline.db.read() as session:
        both = select(Delivery.job_id, Event.type).join(Event, Delivery.event_id == Event.id)
        messages = Counter(tuple(row) for row in session.execute(both))
    kinds = ("file.completed", "file.failed", "file_batch.completed")
    assert messages == {(batch, f"vector_store.{kind}"): 1 for kind in kinds} | {
        (single, f"vector_store.{kinds[0]}"): 1
    }


def test_a_batch_of_refused_files_embeds_nothing(inline: Works) -> None:
    store = inline.store()
    batch = inline.batch(store, inline.upload(b"\x7fELF\x00\x01", "a.bin"))

    inline.drive()

    assert inline.engine.asked == []
    job = inline.job(batch)
    assert (job.state, job.completed, job.failed) == (JobState.SUCCEEDED, 0, 1)
    assert inline.search(store, "anything") == []


def test_a_file_named_twice_comes_in_once(inline: Works) -> None:
    store, file = inline.store(), inline.upload(PROSE)

    batch = inline.batch(store, file, file)
    inline.drive()

    assert inline.job(batch).total == 1
    assert inline.get(f"/vector_stores/{store}/file_batches/{batch}")["file_counts"]["total"] == 1
    inline.assert_tidy(store)


def test_the_same_text_is_embedded_once(inline: Works) -> None:
    store = inline.store()
    one, other = inline.upload(PROSE), inline.upload(PROSE, "b.txt")

    inline.batch(store, one, other)
    inline.drive()

    assert inline.engine.texts < inline.row(store, one).entries + inline.row(store, other).entries
    assert inline.engine.texts == len({text for texts in inline.engine.asked for text in texts})
    assert {found.file_id for found in inline.search(store, "kiwi", limit=50)} == {one, other}


def test_unchanged_reattached_file_is_not_reparsed_or_reembedded(
    inline: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = inline.store(), inline.upload(PROSE)
    inline.attach(store, file)
    inline.drive()
    before, asked = inline.row(store, file), inline.engine.texts
    monkeypatch.setattr(inline.parser, "parse", _never)

    inline.attach(store, file, attributes={"again": True})
    found_meanwhile = inline.search(store, "kiwi")
    inline.drive()

    after = inline.row(store, file)
    assert (after.status, after.document, after.entries, after.usage_bytes) == (
        "completed", before.document, before.entries, before.usage_bytes,
    )  # fmt: skip
    assert inline.engine.texts == asked + 1  # the query
    assert found_meanwhile
    inline.purge()
    inline.assert_tidy(store)


def _never(*_: Any) -> None:
    raise AssertionError("nothing was to be parsed")


def test_old_chunks_are_found_until_rechunking_completes(both: Works) -> None:
    store, file = both.store(), both.upload(PROSE)
    both.attach(store, file)
    both.drive()
    old = both.row(store, file).document
    longest = max(len(found.text) for found in both.search(store, "kiwi"))
    meanwhile: list[int] = []
    both.vectors.after_write = lambda: meanwhile.append(max(len(found.text) for found in both.search(store, "kiwi")))

    both.attach(store, file, chunking_strategy=WIDE)
    both.drive()

    assert meanwhile == [longest]
    assert max(len(found.text) for found in both.search(store, "kiwi")) > longest
    assert both.row(store, file).document != old
    assert both.removals() == ["document"]
    both.purge()
    both.assert_tidy(store)


def test_a_new_attempt_that_fails_leaves_the_old_version_found(inline: Works) -> None:
    store, file = inline.store(), inline.upload(PROSE)
    inline.attach(store, file)
    inline.drive()
    inline.storage.delete(f"files/{file}")

    inline.attach(store, file, chunking_strategy=WIDE)
    inline.drive()

    assert inline.statuses(store) == {file: ("failed", "invalid_file")}
    assert inline.search(store, "kiwi")


def test_store_uses_requested_embedding_dimensions(inline: Works) -> None:
    store = inline.store(embedding_dimensions=16)

    inline.attach(store, inline.upload(PROSE))
    inline.drive()

    assert inline.get(f"/vector_stores/{store}")["embedding_dimensions"] == 16
    assert inline.search(store, "kiwi")


def test_removed_it_is_found_no_more_and_its_vectors_go(both: Works) -> None:
    store, file, stays = both.store(), both.upload(PROSE), both.upload(OTHER)
    both.batch(store, file, stays)
    both.drive()

    both.delete(f"/vector_stores/{store}/files/{file}")

    assert {found.file_id for found in both.search(store, "kiwi bird", limit=50)} == {stays}
    both.purge()
    both.assert_tidy(store)
    assert both.written(store)


def test_a_deleted_file_leaves_every_store(inline: Works) -> None:
    stores, file = [inline.store(), inline.store()], inline.upload(PROSE)
    for store in stores:
        inline.attach(store, file)
    inline.drive()

    inline.delete(f"/files/{file}")
    inline.purge()

    assert [list(inline.rows(store)) for store in stores] == [[], []]
    assert [inline.written(store) for store in stores] == [{}, {}]


def test_a_deleted_store_leaves_nothing(both: Works) -> None:
    store, other = both.store(), both.store()
    for one in (store, other):
        both.attach(one, both.upload(PROSE))
    both.drive()

    both.delete(f"/vector_stores/{store}")
    both.purge()

    assert (both.written(store), list(both.rows(store))) == ({}, [])
    assert both.vectors.stores() == [other]
    both.assert_tidy(other)


def test_removal_enqueued_by_fast_clock_is_purged(inline: Works) -> None:
    store = inline.store()
    inline.attach(store, inline.upload(PROSE))
    inline.drive()
    inline.delete(f"/vector_stores/{store}")
    with inline.db.write() as session:
        session.execute(update(VectorRemoval).values(due_at=now() + 3600))
        assert attachments.has_due_removals(session)

    purge(inline.context)

    assert (inline.removals(), inline.written(store), list(inline.rows(store))) == ([], {}, [])


@pytest.mark.parametrize(("scope", "name"), [(Scope.QUEUE, Queue.INGEST.value), (Scope.WORKER, "w")])
def test_removals_stay_pending_while_purging_is_paused(inline: Works, scope: Scope, name: str) -> None:
    store = inline.store()
    inline.attach(store, inline.upload(PROSE))
    inline.drive()
    inline.delete(f"/vector_stores/{store}")
    with inline.db.write() as session:
        pauses.pause(session, scope, name, actor="operator")
    purge(inline.context)
    messages = len(inline.removals())
    with inline.db.write() as session:
        pauses.resume(session, scope, name, actor="operator")
    inline.purge()

    assert (messages, inline.removals(), inline.written(store)) == (1, [], {})


def test_heartbeat_counts_purge_in_progress(inline: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(purging, "_due_removals", lambda context: seen.append(context.heartbeat.under_way.counts()))

    purge(inline.context)

    assert seen == [[[Queue.INGEST, "", "", 1]]]
    assert inline.context.heartbeat.under_way.counts() == []


def test_same_text_in_other_store_of_project_is_not_reembedded(both: Works) -> None:
    first, second = both.store(), both.store()
    both.attach(first, both.upload(PROSE))
    both.drive()
    asked = both.engine.texts

    both.attach(second, both.upload(PROSE + "\n"))  # another file with the same text
    both.drive()

    assert both.engine.texts == asked
    assert both.search(second, "a bird")[0].text == both.search(first, "a bird")[0].text
    both.assert_tidy(second)


def test_same_file_in_any_store_of_project_is_not_reembedded(both: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "STORES_LOOKED_AT", 1)
    first = both.store()
    both.attach(first, both.upload(PROSE))
    both.drive()
    for n in range(2):  # used later
        both.attach(both.store(), both.upload(f"{OTHER} {n}"))
        both.drive()
    asked = both.engine.texts
    last, again = both.store(), both.upload(PROSE, "b.txt")

    both.attach(last, again)
    both.drive()

    assert both.engine.texts == asked
    assert [one.file_id for one in both.search(last, "kiwi", limit=1)] == [again]
    both.delete(f"/vector_stores/{first}")
    both.delete(f"/vector_stores/{last}")
    both.purge()
    both.attach(both.store(), again)
    both.drive()
    assert both.engine.texts > asked + 1  # the search's own is one


def test_same_text_in_other_project_is_reembedded(both: Works) -> None:
    both.attach(both.store(), both.upload(PROSE))
    both.drive()
    asked = both.engine.texts
    with both.as_stranger():
        both.attach(both.store(), both.upload(PROSE))
        both.drive()

    assert both.engine.texts == 2 * asked


def test_batch_with_finished_files_is_completed_before_its_job_closes(inline: Works) -> None:
    store = inline.store()
    batch = inline.batch(store, *(inline.upload(f"{PROSE} {n}") for n in range(4)))
    before = inline.get(f"/vector_stores/{store}/file_batches/{batch}")

    inline.drive(until="finish")

    after = inline.get(f"/vector_stores/{store}/file_batches/{batch}")
    assert inline.job(batch).state == JobState.FINISHING
    assert (before["status"], before["file_counts"]["in_progress"]) == ("in_progress", 4)
    assert (after["status"], after["file_counts"]["completed"]) == ("completed", 4)
