"""Checkpoints with a vocabulary alone, as Legal-BERT, BioBERT and CodeBERT come: texts are cut on their own tokens."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from jobs.fleet.models_file import Registry
from jobs.settings import Settings
from tests.support import tiny_roberta
from workers.engines import model_folders
from workers.engines.model_folders import MINILM, materialise
from workers.retrieval.ingestion import embedding_model
from workers.retrieval.ingestion.embedding_model import NoTokenizer, TokenizerUnavailable

TEXT = "Förderanträge: def add(a, b) — the kiwi can't fly."


def bert(folder: Path) -> Tokenizer:
    """Write a vocabulary, and return the expected tokens."""
    whole = Tokenizer.from_file(str(materialise(MINILM, folder) / "tokenizer.json"))
    whole.no_padding()
    whole.no_truncation()
    vocabulary = whole.get_vocab()
    (folder / "vocab.txt").write_text(
        "".join(f"{token}\n" for token in sorted(vocabulary, key=lambda one: vocabulary[one]))
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 128}))
    return whole


def roberta(folder: Path) -> Tokenizer:
    tiny_roberta.write(folder)
    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{' '.join(pair)}\n" for pair in model["merges"]))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    return whole


def settings(tmp_path: Path, folder: Path) -> Settings:
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"models": {"plain": {"source": {"path": str(folder)}, "engine": "embed"}}}))
    return Settings(data_dir=tmp_path / "data", models_file=str(file))


# Each vocabulary takes a child that imports transformers, so `make test` tries one.
@pytest.mark.verify
@pytest.mark.parametrize("write", [bert, roberta])
def test_a_vocabulary_makes_the_models_own_tokenizer_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Tokenizer]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    whole = write(folder)
    config = settings(tmp_path, folder)
    chunking = {"type": "static", "static": {"max_chunk_size_tokens": 4096, "chunk_overlap_tokens": 0}}

    made = embedding_model.cutting_of(config, "plain", chunking)
    monkeypatch.setattr("workers.engines.model_folders._run_child", None)
    model_folders.convert_tokenizer.cache_clear()
    again = embedding_model.cutting_of(config, "plain", chunking)

    assert made == again
    assert made.max_tokens == {"bert": 126, "roberta": 510}[write.__name__]
    assert Tokenizer.from_file(str(made.tokenizer)).encode(TEXT).ids == whole.encode(TEXT).ids


def test_a_tokenizer_that_cannot_be_made_now_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.txt").write_text("a")
    (tmp_path / "data").write_text("a file where the folder should be")

    with pytest.raises(TokenizerUnavailable, match="could not be made"):
        embedding_model.folder_of(
            settings(tmp_path, folder), Registry.load(settings(tmp_path, folder)).resolve("plain")
        )


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "nor a vocabulary"),
        pytest.param({"vocab.json": "{"}, "makes no tokenizer", marks=pytest.mark.verify),
    ],
)
def test_invalid_tokenizer_files_are_reported(tmp_path: Path, files: dict[str, str], told: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in {"config.json": '{"model_type": "roberta"}', **files}.items():
        (folder / name).write_text(content)

    with pytest.raises(NoTokenizer, match=told):
        embedding_model.cutting_of(
            settings(tmp_path, folder), "plain", {"type": "static", "static": {"max_chunk_size_tokens": 100}}
        )
