"""A worker that dies anywhere is followed by another: each file comes in once, and nothing is left of the attempt."""

from collections.abc import Iterator

import pytest

from jobs.ledger.states import JobState
from tests.support.ingestion import Killed, Works
from workers.retrieval.ingestion.index import CHUNKS_AT_ONCE

TEXTS = [f"Number {name} is a word of its own. " * 25 for name in ("one", "two", "three")]
BROKEN = b"\x7fELF\x00\x01"


def deaths(inline: Works) -> Iterator[tuple[str, str, list[str]]]:
    """For each point at which a worker can die, from the plan to the end: a batch with a refused file, and a death."""
    for at in range(1, 200):
        store = inline.store()
        files = [inline.upload(text) for text in TEXTS] + [inline.upload(BROKEN, "a.bin")]
        batch = inline.batch(store, *files)
        inline.reaper.arm(at)
        try:
            inline.drive()
        except Killed:
            yield store, batch, files
        else:
            inline.reaper.armed = False
            return


def test_worker_death_at_any_point_ingests_each_file_once(inline: Works) -> None:
    points = 0
    for store, batch, files in deaths(inline):
        points += 1
        embedded = inline.engine.texts
        inline.handle_worker_death()
        inline.drive()

        assert [status for status, _ in inline.statuses(store).values()].count("completed") == len(TEXTS)
        job = inline.job(batch)
        assert (job.state, job.completed, job.failed) == (JobState.SUCCEEDED, len(TEXTS), 1)
        told = inline.told(batch)
        assert [told.count(("vector_store.file.completed", file)) for file in files] == [1] * len(TEXTS) + [0]
        assert told.count(("vector_store.file.failed", files[-1])) == 1
        assert told.count(("vector_store.file_batch.completed", batch)) == 1
        assert inline.engine.texts - embedded <= sum(row.entries for row in inline.rows(store)) <= CHUNKS_AT_ONCE
        found = {one.file_id for one in inline.search(store, "number word", limit=50)}
        assert found == set(files[:-1])
        inline.purge()
        inline.assert_tidy(store)
        assert sum(inline.written(store).values()) == sum(row.entries for row in inline.rows(store))

    assert points >= 30


def test_vectors_of_dead_worker_are_reused(inline: Works) -> None:
    """Vectors that nobody can find yet are known all the same."""
    store = inline.store()
    batch = inline.batch(store, *[inline.upload(text) for text in TEXTS])
    inline.vectors.after_write = lambda: inline.reaper.arm(1)  # in the commit that would have shown them

    with pytest.raises(Killed):
        inline.drive()
    asked = inline.engine.texts
    inline.vectors.after_write = bool
    assert inline.search(store, "number") == []
    inline.handle_worker_death()
    inline.drive(until="finish")

    written = sum(inline.written(store).values())
    entries = sum(row.entries for row in inline.rows(store))
    assert inline.engine.texts < asked + entries
    assert written > entries
    inline.drive()
    inline.purge()
    inline.assert_tidy(store)
    assert inline.job(batch).completed == len(TEXTS)


def test_a_zombie_that_commits_late_shows_nothing_and_leaves_nothing(both: Works) -> None:
    store = both.store()
    both.batch(store, *[both.upload(text) for text in TEXTS[:2]])

    def another_took_over() -> None:
        both.vectors.after_write = bool
        both.handle_worker_death()
        both.drive()
        seen.append({row.document for row in both.rows(store)})
        both.purge()

    seen: list[set[str | None]] = []
    both.vectors.after_write = another_took_over
    both.drive()  # the outer call is the zombie: its vectors are written, its claim is gone

    assert [{row.document for row in both.rows(store)}] == seen
    both.purge()
    both.assert_tidy(store)


def test_a_zombie_that_still_writes_shows_nothing_and_leaves_nothing(both: Works) -> None:
    store = both.store()
    both.batch(store, *[both.upload(text) for text in TEXTS[:2]])

    def another_took_over() -> None:
        both.vectors.before_write = bool
        both.handle_worker_death()
        both.drive()
        both.purge()

    both.vectors.before_write = another_took_over
    both.drive()

    both.purge()
    both.assert_tidy(store)
    assert {status for status, _ in both.statuses(store).values()} == {"completed"}


def test_a_zombie_that_still_parses_changes_nothing(inline: Works) -> None:
    store = inline.store()
    batch = inline.batch(store, *[inline.upload(text) for text in TEXTS[:2]])

    def another_took_over(_: str) -> None:
        inline.storage.before_put = str
        inline.handle_worker_death()
        inline.drive()

    inline.storage.before_put = another_took_over
    inline.drive()

    assert inline.job(batch).completed == 2
    inline.purge()
    inline.assert_tidy(store)


def test_commits_with_lost_answers_count_once(inline: Works) -> None:
    """Commit each transaction without an answer of the database, so that it is tried again."""
    store = inline.store()
    files = [inline.upload(text) for text in TEXTS]
    batch = inline.batch(store, *files, inline.upload(BROKEN, "a.bin"))

    inline.db.loses_answers = True
    inline.drive()

    job = inline.job(batch)
    assert (job.state, job.completed, job.failed) == (JobState.SUCCEEDED, len(TEXTS), 1)
    assert job.input_tokens == sum(len(text) for texts in inline.engine.asked for text in texts)
    told = inline.told(batch)
    assert len(told) == len(set(told)) == len(TEXTS) + 1 + 3
    inline.purge()
    inline.assert_tidy(store)
