"""Every runtime computes the vectors that sentence-transformers computes, for each kind of model that is served."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.fleet import checkpoint
from tests.support import tiny_bert, tiny_roberta
from workers.engines.encoders import embed_model
from workers.engines.encoders.embed_model import Computing, SentenceModel
from workers.engines.model_folders import MINILM, materialise

pytestmark = [pytest.mark.verify, pytest.mark.timeout(240)]

TEXTS = ["A cat sat on the mat.", "x", "Interest rates rose again, and again.", "word " * 90, "été à la plage 東京"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """MiniLM with its own pooling; a plain BERT; the same with the first token as its vector; a plain RoBERTa."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    plain = tiny_bert.write(tmp_path_factory.mktemp("plain"))
    first = tmp_path_factory.mktemp("first")
    body = Transformer(str(plain))
    SentenceTransformer(modules=[body, Pooling(64, pooling_mode="cls")], device="cpu").save(str(first))
    roberta = tiny_roberta.write(tmp_path_factory.mktemp("roberta"))
    return {"minilm": materialise(MINILM, plain), "plain": plain, "first": first, "roberta": roberta}


#: Each kind of model by the fewest bits, and one kind in each way: for `make verify`. All others: for `make soak`.
WAYS = [
    pytest.param(
        (model, way), id=f"{model}, {way}", marks=() if model == "minilm" or way == "onnx int8" else pytest.mark.soak
    )
    for model in ("minilm", "plain", "first", "roberta")
    for way in ("torch float32", "torch bfloat16", "onnx float32", "onnx int8")
]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    model, computing = request.param
    return model, computing


@pytest.fixture
def folder(way: tuple[str, str], folders: dict[str, Path]) -> str:
    return str(folders[way[0]])


@pytest.fixture
def computing(way: tuple[str, str], folder: str, tmp_path: Path) -> tuple[Computing, float]:
    """Return a way to compute, and how near to the reference it has to be."""
    runtime, dtype = way[1].split()
    if runtime == "torch":
        return Computing(dtype), 0.999
    whole, small = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    embed_model.export_onnx(SentenceModel(folder, None, {}, Computing("float32")).transformer, whole)
    if dtype == "float32":
        return Computing(dtype, whole), 0.99999
    embed_model.quantise_onnx(whole, small)
    return Computing(dtype, small), 0.97


def reference(folder: str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, device="cpu").encode(TEXTS, normalize_embeddings=True)


def test_vectors_are_those_of_sentence_transformers(folder: str, computing: tuple[Computing, float]) -> None:
    how, least = computing
    model = SentenceModel(folder, None, {}, how)

    together = model.embed(model.tokens_of(TEXTS))
    alone = [model.embed([ids])[0] for ids in model.tokens_of(TEXTS)]

    expected = reference(folder)
    assert (together * expected).sum(axis=1).min() > least
    assert min(float(one @ other) for one, other in zip(alone, expected, strict=True)) > least
    assert (together**2).sum(axis=1) == pytest.approx([1.0] * len(TEXTS), abs=1e-5)


def test_longest_input_is_taken(folder: str, computing: tuple[Computing, float]) -> None:
    model = SentenceModel(folder, None, {}, computing[0])

    assert model.embed([[101] * model.longest, [101, 102]]).shape == (2, model.dimensions)


def test_checkpoint_without_files_of_sentence_transformers_is_pooled_by_its_mean(folders: dict[str, Path]) -> None:
    import torch
    from transformers import AutoModel

    model = SentenceModel(str(folders["plain"]), None, {}, Computing("float32"))
    ids = model.tokens_of(["A cat sat on the mat."])
    bare = AutoModel.from_pretrained(folders["plain"]).eval()
    with torch.no_grad():
        tokens = bare(torch.tensor(ids)).last_hidden_state[0]
    mean = torch.nn.functional.normalize(tokens.mean(dim=0), dim=0).numpy()

    assert float(model.embed(ids)[0] @ mean) == pytest.approx(1, abs=1e-5)
    assert (model.longest, model.dimensions) == (128, 64)


def test_length_limit_follows_from_model_positions(folders: dict[str, Path]) -> None:
    """CodeBERT and its kin have 514 positions, say nothing of a length in their tokenizer, and take 512 tokens."""
    model = SentenceModel(str(folders["roberta"]), None, {}, Computing("float32"))

    assert (model.longest, checkpoint.context_of(folders["roberta"])) == (tiny_roberta.CONTEXT, tiny_roberta.CONTEXT)
    assert model.embed([[5] * model.longest]).shape == (1, 64)
    with pytest.raises(RuntimeError, match="out of bounds"):
        model.embed([[5] * (model.longest + 1)])


@pytest.mark.parametrize(("stated", "taken"), [(None, 128), (10**30, 128), (64, 64), (512, 128)])
def test_length_that_a_tokenizer_states_counts_up_to_the_positions(
    folders: dict[str, Path], tmp_path: Path, stated: int | None, taken: int
) -> None:
    folder = shutil.copytree(folders["plain"], tmp_path / "model")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told.pop("model_max_length", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(told | ({"model_max_length": stated} if stated else {})))

    assert SentenceModel(str(folder), None, {}, Computing("float32")).longest == taken
    assert checkpoint.context_of(folder) == taken


def test_model_over_onnx_size_limit_is_not_exported(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(embed_model, "MAX_ONNX_BYTES", 1000)
    model = SentenceModel(str(folders["plain"]), None, {}, Computing("float32"))

    with pytest.raises(embed_model.NotExportable, match="MiB of weights"):
        embed_model.export_onnx(model.transformer, tmp_path / "x.onnx")


def test_damaged_file_is_found_at_the_start(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(folders["plain"] / "config.json", tmp_path / "x.onnx")

    with pytest.raises(Exception, match=r"x\.onnx"):
        SentenceModel(str(folders["plain"]), None, {}, Computing("float32", tmp_path / "x.onnx"))
