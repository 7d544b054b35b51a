"""When what embeds, or what keeps vectors, is busy, breaks, lies or kills."""

from pathlib import Path

import pytest

from jobs.ledger.slot_weights import STALLS_BEFORE_ISOLATION
from jobs.ledger.states import JobState
from jobs.queues import Queue
from jobs.retrieval.documents import Document
from jobs.retrieval.tables import VectorStore
from tests.support.ingesting import DIMENSIONS, Killed, Works, refuses
from workers.engines.port import Answer, EngineBusy, EngineFault, refusal, unknown_model
from workers.retrieval.ingestion import embedding
from workers.retrieval.parsing.parser import Cutting
from workers.vectors.base import VectorsUnavailable

PROSE = "The kiwi is a bird that cannot fly. " * 40
OTHER = "A volcano is a mountain that opens to molten rock. " * 40
POISON = "This file is xyzzy from its beginning to its end. " * 40


def waits(mill: Works, batch: str) -> tuple[str, str | None, float]:
    """Return a released shard: its state, what the job waits for, and for how long."""
    (message,) = mill.messages()
    (shard,) = mill.shards(batch)
    assert shard.stalls == 0
    return shard.state, mill.job(batch).waiting_for, round(message.due_at - message.created_at)


def goes_on(mill: Works, store: str, batch: str) -> None:
    """No file has failed meanwhile, and all come in as soon as the engine takes them."""
    assert {status for status, _ in mill.statuses(store).values()} == {"in_progress"}
    mill.engine.fault = None
    mill.drive()
    assert mill.job(batch).completed == 2
    mill.purge()
    mill.assert_tidy(store)


def test_a_busy_engine_is_waited_for(mill: Works) -> None:
    store = mill.store()
    batch = mill.batch(store, mill.upload(PROSE), mill.upload(OTHER))
    mill.drive(until="index")

    mill.engine.fault = lambda _: EngineBusy("429", retry_after=30)
    mill.handle(mill.messages()[0])

    assert waits(mill, batch) == ("pending", "model", 30)
    goes_on(mill, store, batch)


@pytest.mark.parametrize(
    "fault",
    [EngineFault("connection reset"), Answer(400, b"{}"), Answer(200, b"no JSON"), Answer(200, b'{"data": []}')],
    ids=["breaks", "refuses", "nonsense", "nothing"],
)
def test_a_text_that_no_engine_takes_fails_its_file_alone(mill: Works, fault: EngineFault | Answer) -> None:
    store = mill.store()
    good, bad, other = mill.upload(PROSE), mill.upload(POISON), mill.upload(OTHER)
    batch = mill.batch(store, good, bad, other)

    mill.engine.fault = refuses("xyzzy", fault)
    mill.drive()

    assert mill.statuses(store) == {
        good: ("completed", None), bad: ("failed", "server_error"), other: ("completed", None),
    }  # fmt: skip
    assert (mill.job(batch).completed, mill.job(batch).failed) == (2, 1)
    assert ("vector_store.file.failed", bad) in mill.told(batch)
    mill.purge()
    mill.assert_tidy(store)


CLOSED = {
    "a key that is not valid": refusal(401, "Incorrect API key provided."),
    "no money": refusal(402, "Insufficient credits."),
    "no such model": unknown_model("gone"),
    "no such model, by vLLM": Answer(404, b'{"error": {"message": "The model `x` does not exist.", "code": 404}}'),
}


@pytest.mark.parametrize("answer", CLOSED.values(), ids=CLOSED)
@pytest.mark.verify
def test_an_engine_that_refuses_everybody_is_waited_for(mill: Works, answer: Answer) -> None:
    store = mill.store()
    batch = mill.batch(store, mill.upload(PROSE), mill.upload(OTHER))
    mill.drive(until="index")

    mill.engine.fault = lambda _: answer
    mill.handle(mill.messages()[0])

    assert waits(mill, batch) == ("pending", "model", 10)
    assert len(mill.engine.asked) == 1
    goes_on(mill, store, batch)


def test_a_key_that_is_revoked_in_the_middle_fails_no_file(mill: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "TEXTS_AT_ONCE", 2)
    store = mill.store()
    batch = mill.batch(store, mill.upload(PROSE), mill.upload(OTHER), mill.upload(POISON))
    mill.drive(until="index")

    mill.engine.fault = lambda _: refusal(401, "Revoked.") if len(mill.engine.asked) > 1 else None
    mill.handle(mill.messages()[0])

    assert len(mill.engine.asked) > 1
    assert waits(mill, batch) == ("pending", "model", 10)
    mill.engine.fault = None
    mill.drive()
    assert (mill.job(batch).completed, mill.job(batch).failed) == (3, 0)


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_engines_error_about_a_text_is_the_error_of_its_file(mill: Works, status: int) -> None:
    store = mill.store()
    good, bad = mill.upload(PROSE), mill.upload(POISON)
    batch = mill.batch(store, good, bad)

    mill.engine.fault = refuses("xyzzy", refusal(status, "I embed no xyzzy.\0" + "!" * 10_000))
    mill.drive()

    assert mill.statuses(store) == {good: ("completed", None), bad: ("failed", "server_error")}
    said = mill.get(f"/vector_stores/{store}/files/{bad}")["last_error"]["message"]
    assert said.startswith("The embedding model gave no vectors of this file: I embed no xyzzy. !!")
    assert len(said) < 600
    assert mill.job(batch).failed == 1


def test_refusal_that_concerns_no_text_is_not_retried_text_by_text(mill: Works) -> None:
    store, first, second = mill.store(), mill.upload(PROSE), mill.upload(OTHER)
    mill.batch(store, first, second)

    mill.engine.fault = lambda _: refusal(405, "Embeddings are not served here.")
    mill.drive()

    assert len(mill.engine.asked) == 1
    assert mill.statuses(store) == dict.fromkeys((first, second), ("failed", "server_error"))
    assert {row.error_message for row in mill.rows(store)} == {
        "The embedding model gave no vectors of this file: Embeddings are not served here."
    }


@pytest.mark.parametrize("written", [False, True], ids=["nothing written", "written, and no answer"])
def test_a_vector_database_that_is_away_is_waited_for(mill: Works, written: bool) -> None:
    store = mill.store()
    batch = mill.batch(store, mill.upload(PROSE))
    mill.drive(until="index")

    def away() -> None:
        raise VectorsUnavailable

    mill.vectors.before_write, mill.vectors.after_write = (bool, away) if written else (away, bool)
    mill.handle(mill.messages()[0])

    assert waits(mill, batch) == ("pending", "vectors", 5)
    assert mill.search(store, "kiwi") == []
    mill.vectors.before_write = mill.vectors.after_write = bool
    mill.drive()
    assert mill.job(batch).completed == 1
    mill.purge()
    mill.assert_tidy(store)


def test_a_purge_waits_for_a_vector_database_that_is_away(mill: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    store, file = mill.store(), mill.upload(PROSE)
    mill.attach(store, file)
    mill.drive()
    mill.delete(f"/vector_stores/{store}/files/{file}")

    def away(*_: object) -> int:
        raise VectorsUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(mill.vectors.inner, "drop", away)
        with pytest.raises(AssertionError):
            mill.purge()
    messages = mill.removals()
    mill.purge()

    assert messages == ["document"]
    assert mill.written(store) == {}


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


def test_a_full_disk_is_waited_for(mill: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    store = mill.store()
    batch = mill.batch(store, mill.upload(PROSE))
    for step in ("parse", "index"):
        mill.drive(until=step)
        with monkeypatch.context() as patch:
            patch.setattr(type(mill.context), "low_on_disk", lambda _: True)
            mill.handle(mill.messages()[0])
        assert waits(mill, batch) == ("pending", "disk", 10)

    mill.drive()

    assert mill.job(batch).completed == 1


class Deadly:
    """A parser that is the end of its process when it sees a word."""

    def __init__(self, mill: Works, word: str) -> None:
        self.parse_well, self.word = mill.parser.parse, word.encode()
        self.deaths = 0

    def __call__(self, source: Path, filename: str, cutting: Cutting) -> Document:
        if self.word in source.read_bytes():
            self.deaths += 1
            raise Killed
        return self.parse_well(source, filename, cutting)


def survive(mill: Works, limit: int = 40) -> None:
    """Workers come and die until all is done."""
    for _ in range(limit):
        try:
            mill.drive()
        except Killed:
            mill.handle_worker_death()
        else:
            return
    raise AssertionError("they die for ever")


@pytest.mark.parametrize("poisons", [1, 2, 3])
def test_files_that_kill_who_parses_them_fail_and_their_neighbours_complete(
    mill: Works, monkeypatch: pytest.MonkeyPatch, poisons: int
) -> None:
    store = mill.store()
    texts = [POISON] * poisons + [PROSE]
    files = [mill.upload(f"{text} {n}") for n, text in enumerate(texts)]
    batch = mill.batch(store, *files)
    deadly = Deadly(mill, "xyzzy")
    monkeypatch.setattr(mill.parser, "parse", deadly)

    survive(mill)

    wanted = {file: ("failed", "server_error") if "xyzzy" in text else ("completed", None)
              for file, text in zip(files, texts, strict=True)}  # fmt: skip
    assert mill.statuses(store) == wanted
    assert (mill.job(batch).state, mill.job(batch).failed) == (JobState.SUCCEEDED, poisons)
    assert deadly.deaths <= STALLS_BEFORE_ISOLATION + 2 * poisons
    mill.purge()
    mill.assert_tidy(store)


@pytest.mark.parametrize("poisons", [1, 2])
def test_files_that_kill_who_embeds_them_fail_and_their_neighbours_complete(mill: Works, poisons: int) -> None:
    store = mill.store()
    bad, good = [mill.upload(f"{POISON} {n}") for n in range(poisons)], mill.upload(PROSE)
    batch = mill.batch(store, *bad, good)

    def kill(texts: list[str]) -> None:
        if any("xyzzy" in text for text in texts):
            raise Killed

    mill.engine.fault = kill
    survive(mill)

    assert mill.statuses(store) == dict.fromkeys(bad, ("failed", "server_error")) | {good: ("completed", None)}
    assert (mill.job(batch).completed, mill.job(batch).failed) == (1, poisons)
    mill.purge()
    mill.assert_tidy(store)


def test_a_parsers_own_fault_fails_the_file_alone(mill: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    store, bad, good = mill.store(), mill.upload(POISON), mill.upload(PROSE)
    mill.batch(store, bad, good)
    well = mill.parser.parse

    def parse(source: Path, filename: str, cutting: Cutting) -> Document:
        if b"xyzzy" in source.read_bytes():
            raise ZeroDivisionError
        return well(source, filename, cutting)

    monkeypatch.setattr(mill.parser, "parse", parse)
    mill.drive()

    assert mill.statuses(store) == {bad: ("failed", "server_error"), good: ("completed", None)}


def test_a_model_that_nobody_serves_fails_the_files(mill: Works) -> None:
    store, file = mill.store(embedding_model="all-minilm-l6-v2"), mill.upload(PROSE)
    with mill.db.write() as session:
        session.get_one(VectorStore, store).model = "gone"

    batch = mill.batch(store, file)
    mill.drive()

    assert mill.statuses(store) == {file: ("failed", "server_error")}
    job = mill.job(batch)
    assert (job.state, [error["code"] for error in job.errors or []]) == (JobState.FAILED, ["model_not_found"])
    assert mill.told(batch)[-1] == ("vector_store.file_batch.failed", batch)


def test_shards_are_parsed_in_one_queue_and_indexed_in_another(mill: Works) -> None:
    store = mill.store()
    batch = mill.batch(store, mill.upload(PROSE))

    mill.drive(until="parse")
    (parsing,) = mill.messages()
    mill.drive(until="index")
    (indexing,) = mill.messages()

    assert (parsing.queue, indexing.queue) == (Queue.INGEST, Queue.EMBED)
    assert mill.job(batch).queue == Queue.EMBED
