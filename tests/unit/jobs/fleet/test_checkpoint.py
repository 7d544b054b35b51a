"""Facts of a model are read from its folder, and nothing odd in it does harm."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.fleet import checkpoint
from jobs.fleet.checkpoint import Card, context_tokens, tokenizer_file
from jobs.fleet.models_file import EngineKind, ModelConfig, ModelSource, Registry

PACKAGED = ModelConfig(name="m", engine=EngineKind.EMBED, source=ModelSource(packaged="all-minilm-l6-v2"))


def folder(tmp_path: Path, **files: Any) -> Path:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name.replace("__", ".")).write_text(text)
    return tmp_path


CONTEXTS: dict[str, tuple[dict[str, Any], int | None]] = {
    "nothing": ({}, None),
    "BERT": ({"config__json": {"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}}, 512),
    "RoBERTa": ({"config__json": {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}}, 512),
    "MPNet, by default": ({"config__json": {"model_type": "mpnet", "max_position_embeddings": 514}}, 512),
    "DeBERTa": ({"config__json": {"model_type": "deberta-v2", "max_position_embeddings": 512, "pad_token_id": 0}}, 512),
    "XLNet": ({"config__json": {"model_type": "xlnet", "max_position_embeddings": -1}}, None),
    "a tokenizer without a length": ({"tokenizer_config__json": {"model_max_length": 10**30}}, None),
    "a tokenizer with one": ({"tokenizer_config__json": {"model_max_length": 300}}, 300),
    "sentence-transformers' before the tokenizer's": (
        {"sentence_bert_config__json": {"max_seq_length": 99}, "tokenizer_config__json": {"model_max_length": 88}}, 99,
    ),
    "never more than positions": (
        {"config__json": {"max_position_embeddings": 512}, "sentence_bert_config__json": {"max_seq_length": 1024}}, 512,
    ),
    "no JSON": ({"config__json": "{"}, None),
    "no object": ({"config__json": [1]}, None),
    "no number": ({"config__json": {"max_position_embeddings": "many"}}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTEXTS)
def test_context_is_derived_from_model_files(tmp_path: Path, case: str) -> None:
    files, expected = CONTEXTS[case]

    assert checkpoint.context_of(folder(tmp_path, **files)) == expected


def _modules(*kinds: str) -> list[dict[str, str]]:
    return [{"type": f"sentence_transformers.models.{kind}", "path": kind} for kind in kinds]


_POOLED = {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
DIMENSIONS: dict[str, tuple[dict[str, Any], int | None]] = {
    "nothing": ({}, None),
    "of its config": ({"config.json": {"hidden_size": 768}}, 768),
    "no list": ({"config.json": {"hidden_size": 768}, "modules.json": {}}, 768),
    "pooled": ({"modules.json": _modules("Transformer", "Pooling", "Normalize"), "Pooling/config.json": _POOLED}, 384),
    "pooled twice": (
        {"modules.json": _modules("Pooling"), "Pooling/config.json": _POOLED | {"pooling_mode_cls_token": True}}, 768,
    ),
    "made shorter": (
        {"modules.json": _modules("Pooling", "Dense"), "Pooling/config.json": _POOLED,
         "Dense/config.json": {"in_features": 384, "out_features": 128}}, 128,
    ),
    "by what nobody knows": (
        {"config.json": {"hidden_size": 768}, "modules.json": _modules("Pooling", "Odd"),
         "Pooling/config.json": _POOLED}, None,
    ),
    "odd modules": ({"config.json": {"hidden_size": 768}, "modules.json": [5]}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", DIMENSIONS)
def test_dimensions_are_those_behind_the_last_module(tmp_path: Path, case: str) -> None:
    files, expected = DIMENSIONS[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))

    assert checkpoint.dimensions_of(tmp_path) == expected


CARDS = {
    "no card": (None, Card()),
    "no head": ("# A model", Card()),
    "one data set": ("---\nlicense: mit\ndatasets: snli\n---\n# x", Card("mit", ("snli",))),
    "several": (
        "---\nlanguage: en\nlicense: apache-2.0\ndatasets:\n- a/b\n- c\n---\n",
        Card("apache-2.0", ("a/b", "c")),
    ),
    "a licence of its own": ("---\nlicense: other\nlicense_name: mine\n---\n", Card("mine")),
    "no YAML": ("---\nlicense: [\n---\n", Card()),
    "no mapping": ("---\n- a\n---\n", Card()),
}


@pytest.mark.parametrize("case", CARDS)
def test_head_of_the_readme_is_the_models_card(tmp_path: Path, case: str) -> None:
    text, expected = CARDS[case]

    assert checkpoint.card_of(folder(tmp_path, README__md=text) if text else tmp_path) == expected


def test_prompts_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    said = {"prompts": {"query": "q: ", "odd": 1}, "default_prompt_name": "query"}

    found = checkpoint.own_prompts(folder(tmp_path, config_sentence_transformers__json=said))

    assert (dict(found.prompts), found.default) == ({"query": "q: "}, "query")
    assert not checkpoint.own_prompts(tmp_path / "nowhere").prompts


def test_packaged_model_is_found_where_it_lies() -> None:
    found = checkpoint.folder_of(PACKAGED)

    assert found is not None
    assert checkpoint.context_of(found) == 256
    assert checkpoint.dimensions_of(found) == 384
    assert checkpoint.card_of(found).license == "apache-2.0"
    assert "ms_marco" in (checkpoint.card_of(found).training_data or ())


def test_model_of_the_hub_is_found_in_its_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = PACKAGED.model_copy(update={"source": ModelSource(repo="org/name", revision="a" * 40)})
    assert checkpoint.folder_of(model) is None

    files = tmp_path / "models--org--name" / "snapshots" / ("a" * 40)
    files.mkdir(parents=True)
    (files / "config.json").write_text("{}")

    assert checkpoint.folder_of(model) == files


def test_folder_that_is_not_here_and_a_server_have_none(tmp_path: Path) -> None:
    here = PACKAGED.model_copy(update={"source": ModelSource(path=tmp_path)})
    gone = PACKAGED.model_copy(update={"source": ModelSource(path=tmp_path / "gone")})
    server = ModelConfig(name="m", engine=EngineKind.HTTP, source=ModelSource(urls=("http://a/v1",)))

    assert [checkpoint.folder_of(model) for model in (here, gone, server)] == [tmp_path, None, None]


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ("max_model_len: 100", 100),
        ("max_model_len: 100, engine_args: {max_model_len: 50}", 50),
        ("max_model_len: 100, engine_args: {max_model_len: 2k}", None),
        ("owned_by: me", None),
    ],
)
def test_context_of_generating_model_follows_engine_configuration(
    tmp_path: Path, fields: str, tokens: int | None
) -> None:
    (tmp_path / "models.yaml").write_text(f"models:\n  m: {{source: {{path: .}}, engine: vllm, {fields}}}\n")

    assert context_tokens(Registry.read(tmp_path / "models.yaml").models["m"]) == tokens


def test_tokenizer_is_found_in_the_folder_of_the_model(tmp_path: Path) -> None:
    made = tmp_path / "models"
    (tmp_path / "models.yaml").write_text(
        "models:\n  a: {source: {path: a}, engine: vllm}\n  b: {source: {packaged: b}, engine: vllm}\n"
        "  c: {source: {urls: ['http://c']}, engine: http, tokenizer: c}\n"
    )
    files = {"a": tmp_path / "a", "b": made / "b", "c": tmp_path / "c"}
    models = Registry.read(tmp_path / "models.yaml").models
    assert [tokenizer_file(models[name], made) for name in files] == [None] * 3
    for folder in files.values():
        folder.mkdir(parents=True)
        (folder / "tokenizer.json").write_text("{}")

    assert [tokenizer_file(models[name], made) for name in files] == [one / "tokenizer.json" for one in files.values()]
    with (files["a"] / "tokenizer.json").open("wb") as file:
        file.truncate(21 << 20)
    assert tokenizer_file(models["a"], made) is None
