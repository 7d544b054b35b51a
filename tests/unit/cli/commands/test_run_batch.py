"""vLLM's flags as engine arguments, and the model of a private run."""

import ast
import importlib.util
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.commands import run_batch
from cli.commands.vllm_flags import SERVE_ONLY, SHORT, TakesFlags, engine_args, spelled_out
from cli.demo.system import _SHARED, System
from cli.errors import CliError
from cli.main import _PASSING, app
from cli.up.folder import DataFolder
from cli.up.service import Program, Service
from jobs.fleet.models_file import PACKAGED_FILE, Registry
from jobs.requests.fields import OPENAI
from jobs.settings import Settings
from tests.support.services import need
from workers.engines.vllm.vllm_serving import argv

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_an_installation_of_its_own_touches_nothing_that_others_share() -> None:
    indexes = {name for name in Settings.model_fields if name.endswith("_url")}

    assert indexes | {"vectors_api_key"} == {name.removeprefix("NIGHTMILL_").lower() for name in _SHARED}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {}),
        (["--max-model-len", "2048"], {"max_model_len": 2048}),
        (["--max-model-len=2048", "--enforce-eager"], {"max_model_len": 2048, "enforce_eager": True}),
        (
            ["--no-enable-prefix-caching", "--dtype", "bfloat16"],
            {"no_enable_prefix_caching": True, "dtype": "bfloat16"},
        ),
        (["--enforce-eager", "--no-enforce-eager"], {"no_enforce_eager": True}),
        (["--lora-modules", "a=/a", "b=/b", "--seed", "-1"], {"lora_modules": ["a=/a", "b=/b"], "seed": "-1"}),
        (["--seed", "010", "--a", "yes", "--b", "null"], {"seed": "010", "a": "yes", "b": "null"}),
        (["--gpu-memory-utilization", "0.90"], {"gpu_memory_utilization": "0.90"}),
        (["--hf-overrides", '{"a": 1}'], {"hf_overrides": '{"a": 1}'}),
        (
            ["--compilation-config.cudagraph_mode", "NONE", "--compilation-config.a.b=3", "--x.l+", "1,2"],
            {"compilation_config": {"cudagraph_mode": "NONE", "a": {"b": 3}}, "x": {"l": ["1", "2"]}},
        ),
    ],
)
def test_flags_become_engine_arguments(flags: list[str], expected: dict[str, Any]) -> None:
    assert engine_args(flags) == expected


@pytest.mark.parametrize(
    "words",
    [
        ["--max-model-len", "2048", "--enforce-eager", "--no-enable-prefix-caching"],
        ["--lora-modules", "a=/a", "b=/b"],
        ["--seed", "010", "--kv-cache-dtype", "null", "--max-num-batched-tokens", "2k"],
        ["--hf-overrides", '{"a": 1}'],
        ["--no-such-flag"],
    ],
)
def test_the_engine_is_told_the_same_words(words: list[str]) -> None:
    assert argv(engine_args(words), {}) == words


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-tp", "2"], ["--tensor-parallel-size", "2"]),
        (["-tp=2", "-q", "fp8"], ["--tensor-parallel-size=2", "--quantization", "fp8"]),
        (["-O3"], ["--optimization-level", "3"]),
        (["-O=2", "-O", "1"], ["--optimization-level", "2", "--optimization-level", "1"]),
        (["-cc.mode=3"], ["--compilation-config.mode=3"]),
        (["-i", "in", "-oout", "--seed", "-1", "-"], ["-i", "in", "-oout", "--seed", "-1", "-"]),
    ],
)
def test_short_flags_are_spelled_out(words: list[str], expected: list[str]) -> None:
    assert spelled_out(words) == expected


def test_the_short_flags_are_those_of_vllm() -> None:
    assert dict(_short_flags()) == SHORT


def test_flags_stand_beside_the_commands_own_options() -> None:
    commands, seen = typer.Typer(), []

    @commands.command(cls=TakesFlags, context_settings=_PASSING)
    def run(context: typer.Context, output: str = typer.Option("", "-o")) -> None:
        seen.append((output, context.args))

    done = CliRunner().invoke(commands, ["-tp", "2", "-o", "out", "-cc.mode=3", "-dpm", "--lora-modules", "a", "b"])

    assert done.exit_code == 0, done.output
    [(output, words)] = seen
    assert output == "out"
    assert engine_args(words) == {
        "tensor_parallel_size": 2,
        "data_parallel_multi_port_external_lb": True,
        "lora_modules": ["a", "b"],
        "compilation_config": {"mode": 3},
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["odd"], "'odd' belongs to no flag"),
        (["--seed=1", "odd"], "'odd' belongs to no flag"),
        (["-foo"], "'-foo' is no flag"),
        (["--enforce-eager", "false"], "--enforce-eager takes no value"),
        (["--enable-metrics"], "--enable-metrics: .*nightmill up"),
    ],
)
def test_what_is_no_flag_is_told(words: list[str], told: str) -> None:
    with pytest.raises(CliError, match=told):
        fields("m", *spelled_out(words))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--lora-modules", "a=/a", "b=/b"], "--lora-modules: .* none could name an adapter"),
        (["--seed=1", "--lora_mod=a=/a"], "--lora-modules: .* none could name an adapter"),
        (["--headless"], "--headless: a flag of `vllm serve`"),
        (["--ssl-keyfile", "key.pem"], "--ssl-keyfile: a flag of `vllm serve`"),
        (["--no-enable-flash-late-interaction"], "--enable-flash-late-interaction: a flag of `vllm serve`"),
        (["--api-server-c=2"], "--api-server-count: a flag of `vllm serve`"),
        (["--host", "0.0.0.0"], "--host: a run of its own has no server of metrics"),
        (["--port=9"], "--port: a run of its own has no server of metrics"),
    ],
)
def test_what_a_run_of_its_own_has_no_use_for_is_refused_with_the_reason(words: list[str], told: str) -> None:
    with pytest.raises(CliError, match=told):
        fields("m", *spelled_out(words))


def test_what_only_vllms_server_takes_is_refused() -> None:
    launchers = _vllm() / "entrypoints" / "launchers"
    serving, batch = (ast.parse((launchers / name).read_text()) for name in ("cli_args.py", "run_batch.py"))
    words = [word for words in _added(serving) for word in words if word.startswith("--")]

    of_serving = _fields_of("FrontendArgs", serving) | {word[2:].replace("-", "_") for word in words}
    assert of_serving - _fields_of("BatchFrontendArgs", batch) == SERVE_ONLY


def test_a_packaged_model_keeps_what_it_needs() -> None:
    model = fields("smollm2-135m-instruct", "--max-model-len", "512", "--no-enforce-eager")["smollm2-135m-instruct"]

    assert model["source"] == {"packaged": "smollm2-135m-instruct"}
    assert (model["engine_args"]["max_model_len"], model["engine_args"]["tool_call_parser"]) == (512, "hermes")
    assert model["engine_args"]["no_enforce_eager"] is True
    assert "enforce_eager" not in model["engine_args"]


def test_a_folder_and_a_hub_model_are_sources(tmp_path: Path) -> None:
    folder = fields(str(tmp_path), "--served-model-name", "a", "b")

    assert (folder["a"]["source"], folder["a"]["aliases"]) == ({"path": str(tmp_path)}, ["b"])
    assert fields("org/name", "--revision", COMMIT)["org/name"]["source"] == {"repo": "org/name", "revision": COMMIT}


def test_a_name_of_the_models_file_is_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(
        f"""models:
  mine: {{source: {{path: weights}}, engine: vllm, queue: gpu.large, engine_args: {{dtype: bfloat16}}}}
  hubbed: {{source: {{repo: org/name, revision: {COMMIT}}}, engine: vllm}}
  vectors: {{source: {{packaged: all-minilm-l6-v2}}, engine: embed}}
  far: {{source: {{urls: ["http://far/v1"]}}, engine: http}}
"""
    )
    other = COMMIT[::-1]

    mine = fields("mine", "--seed", "7", file=file)["mine"]

    assert (mine["source"], mine["engine_args"]) == (
        {"path": str(tmp_path / "weights")},
        {"dtype": "bfloat16", "seed": 7},
    )
    assert "queue" not in mine, "a private run has one worker, of the queue that its engine has"
    assert fields("hubbed", "--revision", other, file=file)["hubbed"]["source"]["revision"] == other
    assert fields("vectors", file=file)["vectors"]["engine"] == "embed"
    with pytest.raises(CliError, match="seed: 'vectors' has the engine embed, not vLLM"):
        fields("vectors", "--seed", "7", file=file)
    with pytest.raises(CliError, match="'far' is served by http://far/v1"):
        fields("far", file=file)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--chat-template", "./t.jinja"], {"chat_template": "HERE/t.jinja"}),
        (["--chat-template=t.jinja", "--tokenizer", "tok"], {"chat_template": "HERE/t.jinja", "tokenizer": "HERE/tok"}),
        (["--hf-config-path", "org/name"], {"hf_config_path": "HERE/org/name"}),
        (["--tool-parser-plugin", "plugin.py"], {"tool_parser_plugin": "HERE/plugin.py"}),
        (["--download-dir", "not-yet"], {"download_dir": "HERE/not-yet"}),
        (["--an-argument-of-tomorrow", "a", "./tok"], {"an_argument_of_tomorrow": ["a", "HERE/tok"]}),
        (["--speculative-config.model", "tok"], {"speculative_config": {"model": "HERE/tok"}}),
        (["--speculative-config", '{"model":"./tok", "n":2}'], {"speculative_config": '{"model": "HERE/tok", "n": 2}'}),
        (["--compilation-config", '{"cache_dir": "c"}'], {"compilation_config": '{"cache_dir": "HERE/c"}'}),
    ],
)
def test_a_path_of_the_callers_folder_is_absolute_for_the_engine(
    words: list[str], expected: dict[str, Any], here: Path
) -> None:
    placed = json.loads(json.dumps(expected).replace("HERE", str(here)))

    assert fields("org/other", "--revision", COMMIT, *words)["org/other"]["engine_args"] == placed


@pytest.mark.parametrize(
    "words",
    [
        ["--quantization", "fp8"],
        ["--generation-config", "vllm"],
        ["--tokenizer", "org/elsewhere"],
        ["--tokenizer", "/tok"],
        ["--download-dir", "s3://a/b"],
        ["--ignore-patterns", "org/name", "**/*"],
        ["--hf-overrides", '{"a":1,  "b":"fp8"}'],
        ["--compilation-config", "{no JSON"],
        ["--chat-template", "{% for message in messages %}/" + "x" * 5000 + "{% endfor %}"],
    ],
)
def test_what_names_nothing_here_stays_the_word_it_was(words: list[str], here: Path) -> None:
    found = fields("org/other", "--revision", COMMIT, *words)["org/other"]["engine_args"]

    assert argv(found, {}) == words


def test_the_name_that_requests_call_is_no_path(here: Path) -> None:
    assert set(fields("org/other", "--revision", COMMIT, "--served-model-name", "org/name")) == {"org/name"}


def test_an_engine_of_a_runs_own_serves_what_vllm_can(tmp_path: Path) -> None:
    model = fields(str(tmp_path))[str(tmp_path)]

    assert set(model["endpoints"]) == set(OPENAI)


@pytest.mark.parametrize("words", [["-i", "https://example.com/in", "-o", "out"], ["-i", "in", "-o", "http://a/out"]])
def test_a_url_is_no_path(words: list[str]) -> None:
    done = CliRunner().invoke(app, ["run-batch", *words, "--model", "m"])

    assert isinstance(done.exception, CliError)
    assert "a path is taken, not a URL" in str(done.exception)


@pytest.mark.parametrize(("words", "expected"), [([], "30d"), (["--window", "6h"], "6h")])
def test_a_run_of_its_own_has_the_time_it_is_told(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Recording()
    monkeypatch.setattr(run_batch, "_private", lambda *_: nullcontext((server, lambda: None)))

    CliRunner().invoke(app, ["run-batch", *own_run(tmp_path), *words], env=UNNAMED)

    assert [asked["completion_window"] for asked in server.asked] == [expected]


def test_a_key_that_nothing_takes_is_refused_unless_the_environment_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Recording()
    monkeypatch.setattr(run_batch, "_private", lambda *_: nullcontext((server, lambda: None)))

    typed = CliRunner().invoke(app, ["run-batch", *own_run(tmp_path), "--api-key", "sk-1"], env=UNNAMED)
    assert "--api-key: nothing runs in" in str(typed.exception)
    assert server.asked == []

    CliRunner().invoke(app, ["run-batch", *own_run(tmp_path)], env={**UNNAMED, "NIGHTMILL_API_KEY": "sk-1"})
    assert len(server.asked) == 1


def test_lines_that_ask_for_another_model_are_refused_by_a_deployment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Recording()
    monkeypatch.setattr(run_batch, "_server", lambda *_: nullcontext((server, None)))
    words = own_run(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"url": "/v1/embeddings", "body": {"model": "other"}}\n')

    done = CliRunner().invoke(app, ["run-batch", *words], env=UNNAMED)

    assert "asks for the model 'other', not for 'm'" in str(done.exception)
    assert server.asked == []


@pytest.mark.parametrize("output", ["none/out.jsonl", "."])
def test_nothing_is_begun_whose_results_have_no_place(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []
    monkeypatch.setattr(run_batch, "_server", lambda *_: begun.append(1) or nullcontext((Recording(), None)))
    words = [*own_run(tmp_path), "-o", str(tmp_path / output)]

    done = CliRunner().invoke(app, ["run-batch", *words], env=UNNAMED)

    assert isinstance(done.exception, CliError)
    assert begun == []


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (
            json.dumps({"event": "engine_did_not_start", "error": "Traceback:\n …\nBadEngineArgs: no --bogus"})
            + "\nwhat the next start says\n",
            "engine_did_not_start: BadEngineArgs: no --bogus",
        ),
        ("killed\n", "killed"),
    ],
)
def test_a_process_that_keeps_ending_is_told_with_its_last_error(tmp_path: Path, log: str, told: str) -> None:
    folder = DataFolder(tmp_path)
    folder.make()
    folder.write_run({"processes": [{"name": "gpu", "restarts": 3}]})
    (folder.logs / "gpu.log").write_text(log)
    service = Service(Program("up", ("sleep", "60"), {}, tmp_path, folder.logs / "up.log"))
    service.start()
    system = System(folder, service)

    try:
        with pytest.raises(CliError, match=rf"'gpu' keeps ending; its log says\n{told}$"):
            system.check()
    finally:
        system.stop()


class Recording:
    """A server that takes a file, and says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def upload(self, _path: Path) -> str:
        return "file-1"

    def post(self, _route: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body)
        raise CliError("that is all")


#: No deployment is named.
UNNAMED = {"NIGHTMILL_URL": None, "NIGHTMILL_API_KEY": None}


def own_run(folder: Path) -> list[str]:
    file = folder / "in.jsonl"
    file.write_text('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "m"}}\n')
    return ["-i", str(file), "-o", str(folder / "out.jsonl"), "--model", "m", "--data-dir", str(folder / "none")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the caller's folder, with a template, a plugin and folders, some of them named like words of vLLM's."""
    for name in ("tok", "org/name", "fp8", "vllm"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("t.jinja", "plugin.py"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fields(model: str, *flags: str, file: Path = PACKAGED_FILE) -> dict[str, dict[str, Any]]:
    found = run_batch._fields(Registry.read(file), model, list(flags))
    written = file.with_name("written.yaml") if file != PACKAGED_FILE else None
    if written:
        written.write_text(json.dumps({"models": found}))
        assert list(Registry.read(written).models) == list(found), "what is written is a models file"
    return found


def _short_flags() -> Iterator[tuple[str, str]]:
    for words in _added(ast.parse((_vllm() / "engine" / "arg_utils.py").read_text())):
        longs = [word for word in words if word.startswith("--")]
        yield from ((word, longs[0]) for word in words if word not in longs)


def _added(source: ast.Module) -> Iterator[list[str]]:
    """Return the words of each flag that vLLM's source adds to a parser."""
    for node in ast.walk(source):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            yield [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]


def _fields_of(name: str, source: ast.Module) -> set[str]:
    """Return the fields of a class of vLLM's, each of which is a flag, without those of its bases."""
    [found] = [one for one in source.body if isinstance(one, ast.ClassDef) and one.name == name]
    return {one.target.id for one in found.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}


def _vllm() -> Path:
    """Where vLLM's source lies, to be read: importing it takes half a minute."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        need("vLLM's flags", ModuleNotFoundError("vllm"))
    return Path(found.submodule_search_locations[0])
