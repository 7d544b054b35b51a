"""When what embeds, or what keeps vectors, is busy, breaks, lies or kills."""

from pathlib import Path

import pytest

from jobs.ledger.slot_weights import STALLS_BEFORE_ISOLATION
from jobs.ledger.states import JobState
from jobs.queues import Queue
from jobs.retrieval.documents import Document
from jobs.retrieval.tables import VectorStore
from tests.support.ingestion import DIMENSIONS, Killed, Works, refuses
from workers.engines.port import Answer, EngineBusy, EngineFault, refusal, unknown_model
from workers.retrieval.ingestion import embedding
from workers.retrieval.parsing.parser import Cutting
from workers.vectors.base import VectorsUnavailable

PROSE = "The kiwi is a bird that cannot fly. " * 40
OTHER = "A volcano is a mountain that opens to molten rock. " * 40
POISON = "This file is xyzzy from its beginning to its end. " * 40


def waits(inline: Works, batch: str) -> tuple[str, str | None, float]:
    """Return a released shard: its state, what the job waits for, and for how long."""
    (message,) = inline.messages()
    (shard,) = inline.shards(batch)
    assert shard.stalls == 0
    return shard.state, inline.job(batch).waiting_for, round(message.due_at - message.created_at)


def goes_on(inline: Works, store: str, batch: str) -> None:
    """No file has failed meanwhile, and all come in as soon as the engine takes them."""
    assert {status for status, _ in inline.statuses(store).values()} == {"in_progress"}
    inline.engine.fault = None
    inline.drive()
    assert inline.job(batch).completed == 2
    inline.purge()
    inline.assert_tidy(store)


def test_a_busy_engine_is_waited_for(inline: Works) -> None:
    store = inline.store()
    batch = inline.batch(store, inline.upload(PROSE), inline.upload(OTHER))
    inline.drive(until="index")

    inline.engine.fault = lambda _: EngineBusy("429", retry_after=30)
    inline.handle(inline.messages()[0])

    assert waits(inline, batch) == ("pending", "model", 30)
    goes_on(inline, store, batch)


@pytest.mark.parametrize(
    "fault",
    [EngineFault("connection reset"), Answer(400, b"{}"), Answer(200, b"no JSON"), Answer(200, b'{"data": []}')],
    ids=["breaks", "refuses", "nonsense", "nothing"],
)
def test_a_text_that_no_engine_takes_fails_its_file_alone(inline: Works, fault: EngineFault | Answer) -> None:
    store = inline.store()
    good, bad, other = inline.upload(PROSE), inline.upload(POISON), inline.upload(OTHER)
    batch = inline.batch(store, good, bad, other)

    inline.engine.fault = refuses("xyzzy", fault)
    inline.drive()

    assert inline.statuses(store) == {
        good: ("completed", None), bad: ("failed", "server_error"), other: ("completed", None),
    }  # fmt: skip
    assert (inline.job(batch).completed, inline.job(batch).failed) == (2, 1)
    assert ("vector_store.file.failed", bad) in inline.told(batch)
    inline.purge()
    inline.assert_tidy(store)


CLOSED = {
    "a key that is not valid": refusal(401, "Incorrect API key provided."),
    "no money": refusal(402, "Insufficient credits."),
    "no such model": unknown_model("gone"),
    "no such model, by vLLM": Answer(404, b'{"error": {"message": "The model `x` does not exist.", "code": 404}}'),
}


@pytest.mark.parametrize("answer", CLOSED.values(), ids=CLOSED)
@pytest.mark.verify
def test_an_engine_that_refuses_everybody_is_waited_for(inline: Works, answer: Answer) -> None:
    store = inline.store()
    batch = inline.batch(store, inline.upload(PROSE), inline.upload(OTHER))
    inline.drive(until="index")

    inline.engine.fault = lambda _: answer
    inline.handle(inline.messages()[0])

    assert waits(inline, batch) == ("pending", "model", 10)
    assert len(inline.engine.asked) == 1
    goes_on(inline, store, batch)


def test_a_key_that_is_revoked_in_the_middle_fails_no_file(inline: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "TEXTS_AT_ONCE", 2)
    store = inline.store()
    batch = inline.batch(store, inline.upload(PROSE), inline.upload(OTHER), inline.upload(POISON))
    inline.drive(until="index")

    inline.engine.fault = lambda _: refusal(401, "Revoked.") if len(inline.engine.asked) > 1 else None
    inline.handle(inline.messages()[0])

    assert len(inline.engine.asked) > 1
    assert waits(inline, batch) == ("pending", "model", 10)
    inline.engine.fault = None
    inline.drive()
    assert (inline.job(batch).completed, inline.job(batch).failed) == (3, 0)


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_engines_error_about_a_text_is_the_error_of_its_file(inline: Works, status: int) -> None:
    store = inline.store()
    good, bad = inline.upload(PROSE), inline.upload(POISON)
    batch = inline.batch(store, good, bad)

    inline.engine.fault = refuses("xyzzy", refusal(status, "I embed no xyzzy.\0" + "!" * 10_000))
    inline.drive()

    assert inline.statuses(store) == {good: ("completed", None), bad: ("failed", "server_error")}
    said = inline.get(f"/vector_stores/{store}/files/{bad}")["last_error"]["message"]
    assert said.startswith("The embedding model gave no vectors of this file: I embed no xyzzy. !!")
    assert len(said) < 600
    assert inline.job(batch).failed == 1


def test_refusal_that_concerns_no_text_is_not_retried_text_by_text(inline: Works) -> None:
    store, first, second = inline.store(), inline.upload(PROSE), inline.upload(OTHER)
    inline.batch(store, first, second)

    inline.engine.fault = lambda _: refusal(405, "Embeddings are not served here.")
    inline.drive()

    assert len(inline.engine.asked) == 1
    assert inline.statuses(store) == dict.fromkeys((first, second), ("failed", "server_error"))
    assert {row.error_message for row in inline.rows(store)} == {
        "The embedding model gave no vectors of this file: Embeddings are not served here."
    }


@pytest.mark.parametrize("written", [False, True], ids=["nothing written", "written, and no answer"])
def test_ingestion_waits_for_unavailable_vector_database(inline: Works, written: bool) -> None:
    store = inline.store()
    batch = inline.batch(store, inline.upload(PROSE))
    inline.drive(until="index")

    def away() -> None:
        raise VectorsUnavailable

    inline.vectors.before_write, inline.vectors.after_write = (bool, away) if written else (away, bool)
    inline.handle(inline.messages()[0])

    assert waits(inline, batch) == ("pending", "vectors", 5)
    assert inline.search(store, "kiwi") == []
    inline.vectors.before_write = inline.vectors.after_write = bool
    inline.drive()
    assert inline.job(batch).completed == 1
    inline.purge()
    inline.assert_tidy(store)


def test_purge_waits_for_unavailable_vector_database(inline: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    store, file = inline.store(), inline.upload(PROSE)
    inline.attach(store, file)
    inline.drive()
    inline.delete(f"/vector_stores/{store}/files/{file}")

    def away(*_: object) -> int:
        raise VectorsUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(inline.vectors.inner, "drop", away)
        with pytest.raises(AssertionError):
            inline.purge()
    messages = inline.removals()
    inline.purge()

    assert messages == ["document"]
    assert inline.written(store) == {}


def test_vectors_of_another_length_fail_their_file(both: Works) -> None:
    store, first, second = both.store(), both.upload(PROSE), both.upload(OTHER)
    both.attach(store, first)
    both.drive()

    both.engine.dimensions = DIMENSIONS // 2
    both.attach(store, second)
    both.drive()

    assert both.statuses(store) == {first: ("completed", None), second: ("failed", "server_error")}
    assert "length" in str(both.row(store, second).error_message)
    assert both.get(f"/vector_stores/{store}")["embedding_dimensions"] == DIMENSIONS
    both.engine.dimensions = DIMENSIONS
    assert {one.file_id for one in both.search(store, "kiwi", limit=50)} == {first}
    both.purge()
    both.assert_tidy(store)


def test_a_full_disk_is_waited_for(inline: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    store = inline.store()
    batch = inline.batch(store, inline.upload(PROSE))
    for step in ("parse", "index"):
        inline.drive(until=step)
        with monkeypatch.context() as patch:
            patch.setattr(type(inline.context), "low_on_disk", lambda _: True)
            inline.handle(inline.messages()[0])
        assert waits(inline, batch) == ("pending", "disk", 10)

    inline.drive()

    assert inline.job(batch).completed == 1


class Deadly:
    """A parser that is the end of its process when it sees a word."""

    def __init__(self, inline: Works, word: str) -> None:
        self.parse_well, self.word = inline.parser.parse, word.encode()
        self.deaths = 0

    def __call__(self, source: Path, filename: str, cutting: Cutting) -> Document:
        if self.word in source.read_bytes():
            self.deaths += 1
            raise Killed
        return self.parse_well(source, filename, cutting)


def survive(inline: Works, limit: int = 40) -> None:
    """Workers come and die until all is done."""
    for _ in range(limit):
        try:
            inline.drive()
        except Killed:
            inline.handle_worker_death()
        else:
            return
    raise AssertionError("they die for ever")


@pytest.mark.parametrize("poisons", [1, 2, 3])
def test_files_killing_parsing_worker_fail_and_other_files_complete(
    inline: Works, monkeypatch: pytest.MonkeyPatch, poisons: int
) -> None:
    store = inline.store()
    texts = [POISON] * poisons + [PROSE]
    files = [inline.upload(f"{text} {n}") for n, text in enumerate(texts)]
    batch = inline.batch(store, *files)
    deadly = Deadly(inline, "xyzzy")
    monkeypatch.setattr(inline.parser, "parse", deadly)

    survive(inline)

    wanted = {file: ("failed", "server_error") if "xyzzy" in text else ("completed", None)
              for file, text in zip(files, texts, strict=True)}  # fmt: skip
    assert inline.statuses(store) == wanted
    assert (inline.job(batch).state, inline.job(batch).failed) == (JobState.SUCCEEDED, poisons)
    assert deadly.deaths <= STALLS_BEFORE_ISOLATION + 2 * poisons
    inline.purge()
    inline.assert_tidy(store)


@pytest.mark.parametrize("poisons", [1, 2])
def test_files_killing_embedding_worker_fail_and_other_files_complete(inline: Works, poisons: int) -> None:
    store = inline.store()
    bad, good = [inline.upload(f"{POISON} {n}") for n in range(poisons)], inline.upload(PROSE)
    batch = inline.batch(store, *bad, good)

    def kill(texts: list[str]) -> None:
        if any("xyzzy" in text for text in texts):
            raise Killed

    inline.engine.fault = kill
    survive(inline)

    assert inline.statuses(store) == dict.fromkeys(bad, ("failed", "server_error")) | {good: ("completed", None)}
    assert (inline.job(batch).completed, inline.job(batch).failed) == (1, poisons)
    inline.purge()
    inline.assert_tidy(store)


def test_a_parsers_own_fault_fails_the_file_alone(inline: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    store, bad, good = inline.store(), inline.upload(POISON), inline.upload(PROSE)
    inline.batch(store, bad, good)
    well = inline.parser.parse

    def parse(source: Path, filename: str, cutting: Cutting) -> Document:
        if b"xyzzy" in source.read_bytes():
            raise ZeroDivisionError
        return well(source, filename, cutting)

    monkeypatch.setattr(inline.parser, "parse", parse)
    inline.drive()

    assert inline.statuses(store) == {bad: ("failed", "server_error"), good: ("completed", None)}


def test_unserved_embedding_model_fails_files(inline: Works) -> None:
    store, file = inline.store(embedding_model="all-minilm-l6-v2"), inline.upload(PROSE)
    with inline.db.write() as session:
        session.get_one(VectorStore, store).model = "gone"

    batch = inline.batch(store, file)
    inline.drive()

    assert inline.statuses(store) == {file: ("failed", "server_error")}
    job = inline.job(batch)
    assert (job.state, [error["code"] for error in job.errors or []]) == (JobState.FAILED, ["model_not_found"])
    assert inline.told(batch)[-1] == ("vector_store.file_batch.failed", batch)


def test_shards_are_parsed_and_indexed_in_separate_queues(inline: Works) -> None:
    store = inline.store()
    batch = inline.batch(store, inline.upload(PROSE))

    inline.drive(until="parse")
    (parsing,) = inline.messages()
    inline.drive(until="index")
    (indexing,) = inline.messages()

    assert (parsing.queue, indexing.queue) == (Queue.INGEST, Queue.EMBED)
    assert inline.job(batch).queue == Queue.EMBED
