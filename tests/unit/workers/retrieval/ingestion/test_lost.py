"""Workers that hear that what they hold is somebody else's by now, or that there is nothing to bring it into."""

import pytest

from jobs.retrieval import indexes
from tests.support.ingestion import Works
from workers.retrieval.ingestion import index

PROSE = "The kiwi is a bird that cannot fly. " * 40
OTHER = "A volcano is a mountain that opens to molten rock. " * 40


def lose(inline: Works) -> None:
    """Let the process learn that it lost all its claims."""
    for handle in set(inline.context.heartbeat._handles):
        handle.end(lost=True)


@pytest.mark.parametrize("writes", [0, 1, 2], ids=["while it embeds", "between two writes", "when all is written"])
def test_worker_with_a_lost_claim_publishes_nothing_and_enqueues_the_removal(
    inline: Works, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    monkeypatch.setattr(index, "CHUNKS_AT_ONCE", 2)
    store, file = inline.store(), inline.upload(PROSE)
    batch = inline.attach(store, file)
    inline.drive(until="index")
    written: list[int] = []

    def wrote() -> None:
        written.append(1)
        if len(written) == writes:
            lose(inline)

    inline.vectors.after_write = wrote
    inline.engine.fault = None if writes else lambda _: lose(inline)
    inline.handle(inline.messages()[0])

    (shard,) = inline.shards(batch)
    assert (shard.state, shard.done, inline.search(store, "kiwi"), len(written)) == ("running", 0, [], writes)
    assert inline.removals() == (["leftovers"] if writes else [])
    inline.vectors.after_write, inline.engine.fault = bool, None
    inline.handle_worker_death()
    inline.drive()
    assert inline.row(store, file).entries == 4
    assert inline.statuses(store) == {file: ("completed", None)}
    inline.purge()
    inline.assert_tidy(store)


def test_worker_that_loses_its_claim_while_parsing_stores_nothing(inline: Works) -> None:
    store, file = inline.store(), inline.upload(PROSE)
    batch = inline.attach(store, file)
    inline.drive(until="parse")

    inline.storage.before_put = lambda _: lose(inline)
    inline.handle(inline.messages()[0])
    inline.storage.before_put = str

    assert [shard.state for shard in inline.shards(batch)] == ["running"]
    inline.handle_worker_death()
    inline.drive()
    assert inline.statuses(store) == {file: ("completed", None)}
    inline.purge()
    inline.assert_tidy(store)


@pytest.mark.parametrize("step", ["parse", "index"])
def test_files_for_a_deleted_index_are_counted_as_failed(
    inline: Works, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whoever removes it ends its jobs a moment later."""
    store = inline.store()
    batch = inline.batch(store, inline.upload(PROSE), inline.upload(OTHER))
    inline.drive(until=step)

    with monkeypatch.context() as patch:
        patch.setattr(indexes, "alive", lambda *_: None)
        inline.handle(inline.messages()[0])
    inline.drive()

    assert (inline.job(batch).completed, inline.job(batch).failed) == (0, 2)
    assert inline.engine.asked == []


@pytest.mark.parametrize("step", ["parse", "index"])
def test_a_message_that_comes_twice_is_answered_once(inline: Works, step: str) -> None:
    store, file = inline.store(), inline.upload(PROSE)
    batch = inline.attach(store, file)
    inline.drive(until=step)
    message = inline.messages()[0]

    for _ in range(2):
        inline.handle(message)
    inline.drive()

    assert inline.statuses(store) == {file: ("completed", None)}
    assert inline.job(batch).completed == 1
