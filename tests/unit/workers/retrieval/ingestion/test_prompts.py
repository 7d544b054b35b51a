"""Passages and queries are embedded behind their prompts, and what other prompts made is not taken for the same."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.fleet.models_file import Registry
from jobs.settings import Settings
from tests.support.ingestion import MODEL, Works
from workers.engines.http.dialects import for_server
from workers.engines.model_folders import MINILM, materialise
from workers.engines.port import Request
from workers.retrieval.ingestion import embedding_model

PROSE = "The kiwi is a bird that cannot fly. " * 40


def models_file(inline: Works, **args: str) -> None:
    source = {"packaged": MINILM}
    models = {MODEL: {"source": source, "engine": "embed", "engine_args": args}}
    (inline.folder / "models.yaml").write_text(json.dumps({"models": models}))


def bring_in(inline: Works, store: str, file: str) -> list[str]:
    """Ingest a file, and return the texts that were embedded for it."""
    inline.engine.asked.clear()
    inline.attach(store, file)
    inline.drive()
    assert inline.statuses(store)[file] == ("completed", None)
    return [text for texts in inline.engine.asked for text in texts]


def test_passages_and_queries_are_embedded_behind_their_prompts(both: Works) -> None:
    models_file(both, query_prompt="query: ", passage_prompt="passage: ")
    store, file = both.store(), both.upload(PROSE)

    texts = bring_in(both, store, file)
    both.engine.asked.clear()
    [found, *_] = both.search(store, "kiwi", text_weight=0.0)

    assert texts
    assert all(text.startswith("passage: ") for text in texts)
    assert both.engine.asked == [["query: kiwi"]]
    assert "passage: " not in found.text  # what is shown is the file's own
    assert found.meta["sha256"] == hashlib.sha256(found.text.encode()).hexdigest()


def test_engine_receives_raw_input_type_with_configured_prompt(both: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    models_file(both, prompt="text: ")
    bodies: list[dict[str, Any]] = []
    answer = both.host.engine.answer
    monkeypatch.setattr(both.host.engine, "answer", lambda request: (bodies.append(request.body), answer(request))[1])
    store, file = both.store(), both.upload(PROSE)

    bring_in(both, store, file)
    both.search(store, "kiwi")

    assert {body["input_type"] for body in bodies} == {"raw"}
    assert all(text.startswith("text: ") for body in bodies for text in body["input"])


def test_engine_receives_raw_input_type_without_configured_prompt(both: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[dict[str, Any]] = []
    answer = both.host.engine.answer
    monkeypatch.setattr(both.host.engine, "answer", lambda request: (bodies.append(request.body), answer(request))[1])
    store, file = both.store(), both.upload(PROSE)

    bring_in(both, store, file)
    both.search(store, "kiwi")

    assert len(bodies) >= 2
    assert {body["input_type"] for body in bodies} == {"raw"}


def test_vllm_is_sent_no_field_that_it_does_not_know(tmp_path: Path) -> None:
    model = {"source": {"path": str(tmp_path)}, "engine": "vllm", "endpoints": ["/v1/embeddings"]}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": {"v": model}}))

    assert embedding_model.query_prompt(Settings(data_dir=tmp_path), "v").fields(["a"]) == {"input": ["a"]}


def test_external_server_without_prompts_receives_no_input_type() -> None:
    body = {"model": "m", **embedding_model.EmbeddingPrompt().fields(["a"])}

    assert for_server(Request("/v1/embeddings", body, "r"), None).body == {"model": "m", "input": ["a"]}


def test_reattached_file_is_reembedded_only_after_passage_prompt_change(inline: Works) -> None:
    store, file = inline.store(), inline.upload(PROSE)
    first = bring_in(inline, store, file)
    document = inline.row(store, file).document

    models_file(inline, query_prompt="query: ")
    for_queries_alone = bring_in(inline, store, file)
    models_file(inline, passage_prompt="passage: ")
    changed = bring_in(inline, store, file)
    same = bring_in(inline, store, file)

    assert for_queries_alone == same == []
    assert [text.removeprefix("passage: ") for text in changed] == first
    assert inline.row(store, file).document != document
    inline.purge()
    inline.assert_tidy(store)


def test_no_vector_of_another_prompt_is_taken_from_a_neighbour(inline: Works) -> None:
    one, other, file = inline.store(), inline.store(), inline.upload(PROSE)
    models_file(inline, passage_prompt="passage: ")
    first = bring_in(inline, one, file)
    assert bring_in(inline, other, file) == []  # the same prompt: the neighbour's are taken

    models_file(inline, passage_prompt="p: ")
    again = bring_in(inline, other, file)

    assert [text.removeprefix("p: ") for text in again] == [text.removeprefix("passage: ") for text in first]


def test_prompt_that_changes_while_a_file_is_brought_in_is_whole_or_not_there(inline: Works) -> None:
    store, file = inline.store(), inline.upload(PROSE)
    inline.attach(store, file)
    inline.drive(until="index")

    models_file(inline, passage_prompt="passage: ")
    inline.drive()

    assert {text.startswith("passage: ") for texts in inline.engine.asked for text in texts} == {True}
    assert bring_in(inline, store, file) == []


def test_models_file_that_is_wrong_is_waited_for(inline: Works) -> None:
    store, file = inline.store(), inline.upload(PROSE)
    inline.attach(store, file)
    inline.drive(until="index")
    (inline.folder / "models.yaml").write_text("models: [")

    inline.handle(inline.messages()[0])

    assert inline.statuses(store)[file][0] == "in_progress"
    (inline.folder / "models.yaml").unlink()
    inline.drive()
    assert inline.statuses(store)[file] == ("completed", None)


def test_chunks_leave_room_for_the_prompt(tmp_path: Path) -> None:
    chunking = {"type": "static", "static": {"max_chunk_size_tokens": 4096, "chunk_overlap_tokens": 0}}

    def longest(**args: str) -> int:
        models = {MODEL: {"source": {"packaged": MINILM}, "engine": "embed", "engine_args": args}}
        (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
        return embedding_model.cutting_of(Settings(data_dir=tmp_path), MODEL, chunking).max_tokens

    assert longest() == 254
    assert longest(query_prompt="one two three") == 254
    assert longest(passage_prompt="one two three") == 254 - 3 - 2
    assert longest(prompt="one two three") == 254 - 3 - 2


@pytest.mark.parametrize(
    ("said", "size", "overlap"),
    [
        ({"max_model_len": 8192}, 800, 400),
        ({"max_model_len": 128}, 126, 63),
        ({}, 510, 255),
        ({"tokenizer": "own"}, 254, 127),
        ({"tokenizer": "own", "max_model_len": 200}, 198, 99),
    ],
)
def test_chunks_of_a_model_behind_a_url_are_as_long_as_it_takes(
    tmp_path: Path, said: dict[str, Any], size: int, overlap: int
) -> None:
    own = shutil.copytree(materialise(MINILM, tmp_path), tmp_path / "own")
    models = {"there": {"source": {"urls": ["http://localhost:9/v1"]}, "engine": "http", **said}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
    chunking = {"type": "static", "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}}

    cut = embedding_model.cutting_of(Settings(data_dir=tmp_path), "there", chunking)

    assert (cut.max_tokens, cut.overlap) == (size, overlap)
    assert (cut.tokenizer == own / "tokenizer.json") == ("tokenizer" in said)


def test_models_own_prompts_count(tmp_path: Path) -> None:
    folder = shutil.copytree(materialise(MINILM, tmp_path), tmp_path / "model")
    said = {"prompts": {"query": "q: ", "document": "d: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    models = {MODEL: {"source": {"path": str(folder)}, "engine": "embed"}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
    config = Settings(data_dir=tmp_path)

    assert Registry.load(config).resolve(MODEL)
    assert embedding_model.query_prompt(config, MODEL).text == "q: "
    assert embedding_model.passage_prompt(config, MODEL).text == "d: "
    assert embedding_model.passage_prompt(config, "unknown") == embedding_model.EmbeddingPrompt()
