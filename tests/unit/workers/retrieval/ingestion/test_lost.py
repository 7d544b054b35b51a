"""Workers that hear that what they hold is somebody else's by now, or that there is nothing to bring it into."""

import pytest

from jobs.retrieval import indexes
from tests.support.ingesting import Works
from workers.retrieval.ingestion import index

PROSE = "The kiwi is a bird that cannot fly. " * 40
OTHER = "A volcano is a mountain that opens to molten rock. " * 40


def lose(mill: Works) -> None:
    """Let the process learn that it lost all its claims."""
    for handle in set(mill.context.heartbeat._handles):
        handle.end(lost=True)


@pytest.mark.parametrize("writes", [0, 1, 2], ids=["while it embeds", "between two writes", "when all is written"])
def test_worker_with_a_lost_claim_publishes_nothing_and_enqueues_the_removal(
    mill: Works, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    monkeypatch.setattr(index, "CHUNKS_AT_ONCE", 2)
    store, file = mill.store(), mill.upload(PROSE)
    batch = mill.attach(store, file)
    mill.drive(until="index")
    written: list[int] = []

    def wrote() -> None:
        written.append(1)
        if len(written) == writes:
            lose(mill)

    mill.vectors.after_write = wrote
    mill.engine.fault = None if writes else lambda _: lose(mill)
    mill.handle(mill.messages()[0])

    (shard,) = mill.shards(batch)
    assert (shard.state, shard.done, mill.search(store, "kiwi"), len(written)) == ("running", 0, [], writes)
    assert mill.removals() == (["leftovers"] if writes else [])
    mill.vectors.after_write, mill.engine.fault = bool, None
    mill.handle_worker_death()
    mill.drive()
    assert mill.row(store, file).entries == 4
    assert mill.statuses(store) == {file: ("completed", None)}
    mill.purge()
    mill.assert_tidy(store)


def test_worker_that_loses_its_claim_while_parsing_stores_nothing(mill: Works) -> None:
    store, file = mill.store(), mill.upload(PROSE)
    batch = mill.attach(store, file)
    mill.drive(until="parse")

    mill.storage.before_put = lambda _: lose(mill)
    mill.handle(mill.messages()[0])
    mill.storage.before_put = str

    assert [shard.state for shard in mill.shards(batch)] == ["running"]
    mill.handle_worker_death()
    mill.drive()
    assert mill.statuses(store) == {file: ("completed", None)}
    mill.purge()
    mill.assert_tidy(store)


@pytest.mark.parametrize("step", ["parse", "index"])
def test_files_for_a_deleted_index_are_counted_as_failed(
    mill: Works, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whoever removes it ends its jobs a moment later."""
    store = mill.store()
    batch = mill.batch(store, mill.upload(PROSE), mill.upload(OTHER))
    mill.drive(until=step)

    with monkeypatch.context() as patch:
        patch.setattr(indexes, "alive", lambda *_: None)
        mill.handle(mill.messages()[0])
    mill.drive()

    assert (mill.job(batch).completed, mill.job(batch).failed) == (0, 2)
    assert mill.engine.asked == []


@pytest.mark.parametrize("step", ["parse", "index"])
def test_a_message_that_comes_twice_is_answered_once(mill: Works, step: str) -> None:
    store, file = mill.store(), mill.upload(PROSE)
    batch = mill.attach(store, file)
    mill.drive(until=step)
    message = mill.messages()[0]

    for _ in range(2):
        mill.handle(message)
    mill.drive()

    assert mill.statuses(store) == {file: ("completed", None)}
    assert mill.job(batch).completed == 1
