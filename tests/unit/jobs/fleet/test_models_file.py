"""models.yaml: what is taken, what is refused and in which words, and which name means which model."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from jobs.fleet.models_file import ANY_MODEL, EngineKind, Models, ModelsFileError, Registry, is_internal
from jobs.settings import Settings

MINIMAL = """
models:
  tiny:
    source: {packaged: smollm2-135m-instruct}
    engine: vllm
    aliases: [gpt-4o-mini]
  remote:
    source: {urls: ["http://127.0.0.1:9000/v1"]}
    engine: http
    aliases: [claude]
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "models.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def model_with(folder: Path, **fields: Any) -> Path:
    """Write a models file with one model of these fields, in YAML's flow style."""
    given = {"source": "{packaged: x}", "engine": "vllm"} | fields
    lines = [f"    {key}: {value}" for key, value in given.items() if value is not None]
    return written(folder, "\n".join(["models:", "  m:", *lines]))


def test_openais_names_are_no_aliases_unless_the_operator_says_so() -> None:
    registry = Registry.load(Settings())

    assert list(registry.models) == ["smollm2-135m-instruct", "all-minilm-l6-v2"]
    assert dict(registry.aliases) == {}


def test_openais_names_name_the_first_model_that_serves_their_endpoint(tmp_path: Path) -> None:
    file = written(tmp_path, """
models:
  vectors: {source: {packaged: all-minilm-l6-v2}, engine: embed}
  first: {source: {urls: ["http://10.0.0.1:8000"]}, engine: http, endpoints: [/v1/chat/completions]}
  second: {source: {urls: ["http://10.0.0.2:8000"]}, engine: http, aliases: [gpt-5]}
  gpt-4o: {source: {urls: ["http://10.0.0.3:8000"]}, engine: http}
""")  # fmt: skip
    registry = Registry.load(Settings(models_file=str(file), openai_aliases=True))

    assert registry.aliases["gpt-4o-mini"] == "first"
    assert registry.aliases["gpt-5"] == "second", "the file comes first"
    assert registry.aliases["gpt-3.5-turbo-instruct"] == "second", "the first serves no completions"
    assert registry.aliases["text-embedding-3-large"] == "vectors"
    assert "gpt-4o" not in registry.aliases


def test_openai_aliases_survive_change_of_models_file(tmp_path: Path) -> None:
    file = written(tmp_path, MINIMAL)
    registry = Registry.load(Settings(models_file=str(file), openai_aliases=True))

    written(tmp_path, "models:\n  other: {source: {packaged: smollm2-135m-instruct}, engine: vllm}\n")

    assert registry.fresh().aliases["gpt-4o"] == "other"


def test_packaged_file_serves_the_packaged_models_under_openais_names_where_these_are_wanted() -> None:
    registry = Registry.load(Settings(openai_aliases=True))

    chat, vectors = registry.resolve("gpt-4o-mini"), registry.resolve("text-embedding-3-small")

    assert chat is not None
    assert vectors is not None
    assert (chat.name, chat.engine, chat.queue) == ("smollm2-135m-instruct", EngineKind.VLLM, "gpu.generate")
    assert (vectors.name, vectors.engine, vectors.queue) == ("all-minilm-l6-v2", EngineKind.EMBED, "gpu.embed")
    assert vectors.endpoints == ("/v1/embeddings",)
    assert not chat.external


def test_vllm_models_and_aliases_are_dropped_if_vllm_is_disabled() -> None:
    registry = Registry.load(Settings(vllm_enabled=False, openai_aliases=True))

    assert list(registry.models) == ["all-minilm-l6-v2"]
    assert registry.resolve("gpt-4o-mini") is None
    assert registry.resolve("text-embedding-ada-002") is not None


@pytest.mark.parametrize("vllm_enabled", [True, False])
def test_vllm_models_are_trainable_with_and_without_vllm_enabled(tmp_path: Path, vllm_enabled: bool) -> None:
    file = model_with(tmp_path, engine="vllm", source="{path: weights/m}", aliases="[other]")

    registry = Registry.read(file, vllm_enabled=vllm_enabled)

    assert list(registry.trainable) == ["m"]
    assert [getattr(registry.base(name), "name", None) for name in ("m", "other", "nothing")] == ["m", "m", None]
    assert (registry.resolve("m") is not None) is vllm_enabled
    names = "m", "other", "ft:m:acme:support:1", "ft:other:acme::2:ckpt-step-9", "ft:gone:acme::3", "nothing"
    assert [getattr(registry.price_source(name), "name", None) for name in names] == ["m"] * 4 + [None] * 2


def test_file_of_the_settings_is_read_instead(tmp_path: Path) -> None:
    registry = Registry.load(Settings(models_file=str(written(tmp_path, MINIMAL))))

    assert list(registry.models) == ["tiny", "remote"]


def test_every_engine_argument_is_passed_through(tmp_path: Path) -> None:
    file = model_with(tmp_path, engine_args="{tensor_parallel_size: 4, hf_overrides: {a: [1, 2]}}")

    model = Registry.read(file).models["m"]

    assert model.engine_args == {"tensor_parallel_size": 4, "hf_overrides": {"a": [1, 2]}}


def test_path_is_relative_to_the_file(tmp_path: Path) -> None:
    model = Registry.read(model_with(tmp_path, source="{path: weights/m}")).models["m"]

    assert model.source.path == tmp_path / "weights/m"


def test_tokenizer_is_relative_to_the_file(tmp_path: Path) -> None:
    file = model_with(tmp_path, engine="http", source='{urls: ["http://a"]}', tokenizer="weights/m")

    assert Registry.read(file).models["m"].tokenizer == tmp_path / "weights/m"


def test_endpoint_of_a_private_host_is_internal_unless_it_says_otherwise(tmp_path: Path) -> None:
    def external(source: str) -> bool:
        return Registry.read(model_with(tmp_path, engine="http", source=source)).models["m"].external

    assert not external('{urls: ["http://10.0.0.7:8000", "http://vllm-2"]}')
    assert not external('{urls: ["http://10.0.0.7:8000", "https://api.example.com/v1"]}'), "it has an internal one too"
    assert external('{urls: ["https://api.example.com/v1"]}')
    assert not external('{urls: ["https://api.example.com/v1"], internal: true}')
    assert external('{urls: ["http://10.0.0.7:8000"], internal: false}')


@pytest.mark.parametrize(
    ("url", "internal"),
    [
        ("http://127.0.0.1:1", True),
        ("http://localhost:1/v1", True),
        ("http://[::1]:1", True),
        ("http://192.168.3.4", True),
        ("http://vllm:8000", True),
        ("http://vllm.default.svc.cluster.local", True),
        ("http://8.8.8.8", False),
        ("https://api.openai.com/v1", False),
        ("http://[2606:4700::1111]", False),
        ("http://localhost.example.com", False),
    ],
)
def test_host_tells_whether_an_endpoint_is_internal(url: str, internal: bool) -> None:
    assert is_internal(url) is internal


def test_names_of_a_remote_model_are_ours_and_its_servers(tmp_path: Path) -> None:
    file = model_with(tmp_path, engine="http", source='{urls: ["http://a"], model: org/big, api_key_env: KEY}')

    model = Registry.read(file).models["m"]

    assert (model.name, model.upstream, model.source.api_key_env) == ("m", "org/big", "KEY")


WRONG = {
    "no source": ({"source": None}, "line 2: models.m.source: Field required"),
    "no engine": ({"engine": None}, "line 2: models.m.engine: Field required"),
    "unknown engine": ({"engine": "tgi"}, "line 4: models.m.engine: Input should be 'vllm', 'embed', 'rerank'"),
    "unknown key": ({"colour": "red"}, "line 5: models.m.colour: Extra inputs are not permitted"),
    "two sources": (
        {"source": "{packaged: x, path: y}"},
        "line 3: models.m.source: must have exactly one of packaged, path, repo, urls; has ['packaged', 'path']",
    ),
    "an empty source": ({"source": "{}"}, "must have exactly one of packaged, path, repo, urls; has none"),
    "a repository without a revision": (
        {"source": "{repo: org/name}"},
        "line 3: models.m.source: repo needs a revision",
    ),
    "a moving revision": ({"source": "{repo: org/name, revision: main}"}, "line 3: models.m.source.revision"),
    "a revision of a folder": (
        {"source": f"{{path: x, revision: {'a' * 40}}}"},
        "line 3: models.m.source: revision belongs to repo, not to path",
    ),
    "a key of a folder": (
        {"source": "{path: x, api_key_env: KEY}"},
        "line 3: models.m.source: api_key_env belongs to urls, not to path",
    ),
    "urls for vllm": (
        {"source": '{urls: ["http://a"]}'},
        "line 2: models.m: engine http and source urls belong together",
    ),
    "no urls for http": ({"engine": "http"}, "line 2: models.m: engine http and source urls belong together"),
    "arguments for http": (
        {"engine": "http", "source": '{urls: ["http://a"]}', "engine_args": "{a: 1}"},
        "engine_args of http are prompt, query_prompt, passage_prompt",
    ),
    "a prompt that is no text": ({"engine": "embed", "engine_args": "{query_prompt: 1}"}, "query_prompt must be text"),
    "a tokenizer for vllm": ({"tokenizer": "x"}, "line 2: models.m: tokenizer is for models behind urls"),
    "a price below nothing": ({"cost_per_million_tokens": "-1"}, "line 5: models.m.cost_per_million_tokens"),
    "a url without a scheme": (
        {"engine": "http", "source": '{urls: ["localhost:8000"]}'},
        "line 3: models.m.source.urls.0: must be an http or https URL with a host",
    ),
    "a key in the url": (
        {"engine": "http", "source": '{urls: ["http://me:secret@a"]}'},
        "name the key's variable in api_key_env",
    ),
    "a queue of another pool": ({"queue": "cpu.plan"}, "line 5: models.m.queue"),
    "an unknown endpoint": ({"endpoints": "[/v1/audio]"}, "line 5: models.m.endpoints.0"),
    "an alias with a space": ({"aliases": '["gpt 4"]'}, "line 5: models.m.aliases.0: must have 1 to 255 characters"),
    "a wildcard as alias": ({"aliases": '["*"]'}, "neither spaces nor *"),
    "its own name as alias": ({"aliases": "[m]"}, "line 5: models.m.aliases.0: m already names m"),
    "a key twice": ({"aliases": "[a]\n    aliases: [b]"}, "line 6: aliases: is a duplicate key"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistake_is_named_with_its_line_and_key(tmp_path: Path, case: str) -> None:
    fields, words = WRONG[case]
    file = model_with(tmp_path, **fields)

    with pytest.raises(ModelsFileError) as caught:
        Registry.read(file)

    assert str(caught.value).startswith(f"{file}, line ")
    assert words in str(caught.value)


def test_all_errors_are_reported_in_file_order(tmp_path: Path) -> None:
    file = written(tmp_path, "models:\n  a: {engine: vllm}\n  b: {source: {packaged: x}}\n")

    with pytest.raises(ModelsFileError) as caught:
        Registry.read(file)

    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["models.a.source", "models.b.engine"]


def test_alias_that_names_two_models_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, MINIMAL.replace("claude", "gpt-4o-mini"))

    with pytest.raises(ModelsFileError, match=r"line 10: models\.remote\.aliases\.0: gpt-4o-mini already names tiny"):
        Registry.read(file)


@pytest.mark.parametrize("text", ["", "models", "[1]", "models: 3", "models: {a: 3}", "other: {}"])
def test_file_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelsFileError):
        Registry.read(written(tmp_path, text))


def test_broken_yaml_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ModelsFileError, match="line 2, column"):
        Registry.read(written(tmp_path, "models:\n  a: {source: [}\n"))


@pytest.mark.parametrize(
    "text", ["models: {a: 2026-13-01}", "models: {a: !!int ''}", "models: &a {a: *a}", "models: " + "[" * 3000]
)
def test_value_that_yaml_cannot_read_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelsFileError, match=r"models\.yaml: "):
        Registry.read(written(tmp_path, text))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelsFileError, match="No such file"):
        Registry.read(tmp_path / "none.yaml")


def test_name_means_the_files_model_then_an_endpoints_then_an_alias_then_anything(tmp_path: Path) -> None:
    registry = Registry.read(written(tmp_path, MINIMAL))

    assert registry.target("tiny", {"tiny", ANY_MODEL}) == "tiny"
    assert registry.target("qwen", {"qwen"}) == "qwen"
    assert registry.target("gpt-4o-mini", {"gpt-4o-mini"}) == "gpt-4o-mini"
    assert registry.target("gpt-4o-mini", {ANY_MODEL}) == "tiny"
    assert registry.target("gpt-4o-mini", ()) == "tiny"
    assert registry.target("unknown-model", {ANY_MODEL}) == "unknown-model"
    assert registry.target("unknown-model", {"qwen"}) is None


def test_changed_models_file_is_reloaded(tmp_path: Path) -> None:
    file = written(tmp_path, MINIMAL)
    registry = Registry.read(file)
    assert registry.fresh() is registry

    file.write_text(MINIMAL.replace("remote:", "other:"), encoding="utf-8")
    os.utime(file, (1, 1))

    assert list(registry.fresh().models) == ["tiny", "other"]
    assert list(registry.models) == ["tiny", "remote"]


def test_invalid_change_is_logged_once_and_last_valid_version_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(tmp_path, MINIMAL)
    registry = Registry.read(file)
    file.write_text("models: {tiny: {}}", encoding="utf-8")

    with caplog.at_level(logging.ERROR):
        once = registry.fresh()
        twice = once.fresh()

    assert once.models == registry.models
    assert twice is once
    assert [record.message for record in caplog.records] == ["models_file.rejected"]

    file.write_text(MINIMAL.replace("remote:", "other:"), encoding="utf-8")
    assert list(twice.fresh().models) == ["tiny", "other"]


def test_missing_models_file_leaves_last_valid_version(tmp_path: Path) -> None:
    file = written(tmp_path, MINIMAL)
    registry = Registry.read(file)
    file.unlink()

    assert registry.fresh().models == registry.models


def test_registry_does_not_load_an_engine() -> None:
    """The API and the dispatcher read it."""
    import subprocess
    import sys

    code = "import sys, jobs.fleet.models_file; sys.exit(bool({'torch', 'vllm', 'transformers'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_re_ranking_models_have_the_pool_of_vectors_and_a_path_of_their_own(tmp_path: Path) -> None:
    here = Registry.read(model_with(tmp_path, engine="rerank", source="{path: x}")).models["m"]
    urls = '{urls: ["http://127.0.0.1:9000"]}'
    there = Registry.read(model_with(tmp_path, engine="http", source=urls, endpoints="[/v1/rerank]")).models["m"]

    assert (here.engine, here.queue, here.endpoints) == (EngineKind.RERANK, "gpu.embed", ("/v1/rerank",))
    assert (there.queue, there.endpoints) == ("gpu.generate", ("/v1/rerank",))


def test_process_switches_to_models_file_of_deployment(tmp_path: Path) -> None:
    models = Models(Settings(data_dir=tmp_path))
    packaged = models.now()
    file = written(tmp_path, MINIMAL)

    assert list(packaged.models) != list(models.now().models) == ["tiny", "remote"]
    assert models.now() is models.now()
    file.unlink()
    assert list(models.now().models) == ["tiny", "remote"], "what is being written anew is no reason to forget it"


def test_a_process_that_begins_while_the_file_is_wrong_knows_it_as_soon_as_it_is_right(tmp_path: Path) -> None:
    models = Models(Settings(models_file=str(written(tmp_path, "models: ["))))
    with pytest.raises(ModelsFileError):
        models.now()

    written(tmp_path, MINIMAL)

    assert list(models.now().models) == ["tiny", "remote"]
