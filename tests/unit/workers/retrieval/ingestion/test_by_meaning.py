"""Chunks by meaning: sentences are embedded, then cut, then the chunks are; and workers die in between."""

from typing import Any

import pytest

from jobs.ledger.states import JobState
from jobs.retrieval import documents
from jobs.retrieval.documents import Document
from tests.support.ingestion import Killed, Works, refuses
from workers.retrieval.ingestion import embedding_model
from workers.retrieval.ingestion.index import CHUNKS_AT_ONCE
from workers.retrieval.ingestion.semantic import WINDOW

KIWI = "The kiwi is a small bird of New Zealand that cannot fly and sleeps by day. "
LAVA = "A volcano opens where molten rock has found its way up through the hard crust. "
BREAD = "Bakers let dough of flour and water rest until yeast has filled it with gas. "
TOPICS = (KIWI * 4 + LAVA * 4 + BREAD * 4).strip()
BY_MEANING: dict[str, Any] = {"type": "semantic", "semantic": {"max_chunk_size_tokens": 200, "threshold": 0.3}}


def stored(inline: Works, store: str, file: str) -> Document:
    document = documents.load(inline.storage, store, inline.row(store, file).version)
    assert document is not None
    return document


def test_a_text_is_cut_where_its_topic_changes(both: Works) -> None:
    store = both.store(chunking_strategy=BY_MEANING)
    file = both.upload(TOPICS)

    both.batch(store, file)
    both.drive()

    found = both.search(store, "kiwi bird volcano rock bakers dough", limit=50)
    assert sorted(one.text for one in found) == sorted(topic.strip() for topic in (KIWI * 4, LAVA * 4, BREAD * 4))
    content = both.get(f"/vector_stores/{store}/files/{file}/content")["data"][0]["text"]
    assert all(content[one.meta["start"] : one.meta["end"]] == one.text for one in found)
    assert both.get(f"/vector_stores/{store}/files/{file}")["chunking_strategy"] == BY_MEANING
    both.assert_tidy(store)


def test_each_sentence_costs_an_embedding_and_is_counted(inline: Works) -> None:
    store = inline.store(chunking_strategy=BY_MEANING)
    sentences = [f"{KIWI.strip()[:-1]} number {n}." for n in range(20)]
    batch = inline.batch(store, inline.upload(" ".join(sentences)))

    inline.drive()

    asked = [text for texts in inline.engine.asked for text in texts]
    entries = sum(inline.written(store).values())
    assert len(asked) == len(sentences) + WINDOW - 1 + entries
    assert inline.job(batch).input_tokens == sum(map(len, asked))  # of this engine a character is a token


def test_reattached_file_is_rechunked_only_with_changed_parameters(inline: Works) -> None:
    store, file = inline.store(chunking_strategy=BY_MEANING), inline.upload(TOPICS)
    inline.attach(store, file)
    inline.drive()
    asked = inline.engine.texts

    inline.attach(store, file, chunking_strategy=BY_MEANING)
    inline.drive()
    assert inline.engine.texts == asked

    whole = {"type": "semantic", "semantic": {"max_chunk_size_tokens": 250, "threshold": 2}}
    inline.attach(store, file, chunking_strategy=whole)
    inline.drive()
    assert inline.engine.texts > asked
    assert inline.row(store, file).entries == 1
    inline.purge()
    inline.assert_tidy(store)


@pytest.mark.verify
def test_worker_death_at_any_point_ingests_each_file_once(inline: Works) -> None:
    points = 0
    for at in range(1, 200):
        store = inline.store(chunking_strategy=BY_MEANING)
        files = [inline.upload(f"{TOPICS} {at}"), inline.upload(f"{LAVA * 3}{BREAD * 3} {at}")]
        batch = inline.batch(store, *files)
        inline.reaper.arm(at)
        try:
            inline.drive()
        except Killed:
            points += 1
        else:
            inline.reaper.armed = False
            break
        inline.handle_worker_death()
        inline.drive()

        assert set(inline.statuses(store).values()) == {("completed", None)}
        job = inline.job(batch)
        assert (job.state, job.completed, job.failed) == (JobState.SUCCEEDED, 2, 0)
        inline.purge()
        inline.assert_tidy(store)
        for file in files:
            assert stored(inline, store, file).sentences == ()
            assert len(stored(inline, store, file).chunks) == inline.row(store, file).entries

    assert points >= 25


def test_next_worker_reuses_sentence_embeddings(inline: Works) -> None:
    store, file = inline.store(chunking_strategy=BY_MEANING), inline.upload(TOPICS)
    inline.batch(store, file)
    inline.vectors.before_write = lambda: inline.reaper.arm(1)

    with pytest.raises(Killed):
        inline.drive()
    asked = inline.engine.texts
    inline.vectors.before_write = bool
    inline.handle_worker_death()
    inline.drive()

    assert inline.engine.texts == asked + inline.row(store, file).entries == asked + 3


def test_a_zombies_late_cut_changes_nothing_and_leaves_nothing(both: Works) -> None:
    store, file = both.store(chunking_strategy=BY_MEANING), both.upload(TOPICS)
    batch = both.batch(store, file)
    both.drive(until="index")
    [message] = both.messages()

    def overtaken(_path: str) -> None:
        both.storage.before_put = str
        both.handle_worker_death()
        both.drive()
        both.delete(f"/vector_stores/{store}/files/{file}")
        both.purge()

    both.storage.before_put = overtaken
    both.handle(message)
    both.drive()

    assert both.job(batch).completed == 1
    both.purge()
    both.assert_tidy(store)
    assert both.storage.list(documents.folder(store)) == []


def test_a_sentence_that_no_engine_takes_fails_its_file_alone(inline: Works) -> None:
    store = inline.store(chunking_strategy=BY_MEANING)
    good, bad = (
        inline.upload(TOPICS),
        inline.upload(f"{KIWI * 3}Here is a poison in a sentence of so many words. {LAVA}"),
    )
    inline.engine.fault = refuses("poison")

    inline.batch(store, good, bad)
    inline.drive()

    assert inline.statuses(store) == {good: ("completed", None), bad: ("failed", "server_error")}


def test_a_long_document_is_looked_at_slice_by_slice(inline: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    store = inline.store(chunking_strategy=BY_MEANING)
    texts = [f"{sentence.strip()[:-1]} number {n}." for n in range(100) for sentence in (KIWI, LAVA, BREAD)]
    files = [inline.upload(" ".join(texts))]
    inline.batch(store, *files)
    inline.drive()
    once = stored(inline, store, files[0]).chunks

    monkeypatch.setattr("workers.retrieval.ingestion.index.CHUNKS_AT_ONCE", 7)
    other = inline.store(chunking_strategy=BY_MEANING, name="other")
    inline.batch(other, *files)
    inline.drive()

    assert len(texts) > CHUNKS_AT_ONCE
    assert stored(inline, other, files[0]).chunks == once


def test_a_tokenizer_that_cannot_be_read_fails_the_file(inline: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: Any) -> Any:
        raise embedding_model.NoTokenizer("There is none.")

    store, file = inline.store(chunking_strategy=BY_MEANING), inline.upload(TOPICS)
    inline.batch(store, file)
    inline.drive(until="index")
    monkeypatch.setattr(embedding_model, "cutting_of", unreadable)
    inline.drive()

    assert inline.statuses(store) == {file: ("failed", "server_error")}
    assert inline.row(store, file).error_message == "There is none."
