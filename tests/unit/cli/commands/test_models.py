"""The models file, changed by commands: what is added and cut out, and that the rest stays as it was."""

import json
import re
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from cli.client import upstream
from cli.errors import CliError
from cli.main import app
from cli.up.readiness import reachable_url, take_free
from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.fleet.models_file import PACKAGED_FILE, EngineKind, Registry
from jobs.platform.storage import DiskStorage
from jobs.queues import Queue
from tests.support.tuned_adapters import tuned_model
from tests.support.worker_rows import worker_row

Run = Callable[..., str]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("NIGHTMILL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("NIGHTMILL_MODELS_FILE", raising=False)

    def whole(*words: str) -> Any:
        done = CliRunner().invoke(app, ["models", *words])
        if isinstance(done.exception, CliError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done

    def run(*words: str) -> str:
        return str(whole(*words).stdout)

    run.whole = whole  # type: ignore[attr-defined]
    return run


def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "models.yaml"


def test_model_with_failed_probe_is_reprobed_or_accepted(
    run: Run, sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", sqlite.url)
    name = "ft:fake-model:default::abc"
    tuned_model(sqlite, DiskStorage(tmp_path / "files"), name)

    assert "is probed when it is loaded next" in run("probe", name)
    accepted = json.loads(run("probe", name, "--accept", "--json"))
    assert accepted == {"object": "model.probe", "model": name, "state": "ready", "accepted": True}


def test_the_packaged_file_is_copied_before_it_is_changed(run: Run, tmp_path: Path) -> None:
    before = PACKAGED_FILE.read_text()

    run("add", "big", "--path", str(tmp_path / "weights"), "--queue", "gpu.big", "--set", "tensor_parallel_size=2",
        "--set", "dtype=bfloat16", "--alias", "gpt-5-big")  # fmt: skip

    model = Registry.read(file(tmp_path)).models["big"]
    assert (model.engine, model.queue, model.aliases) == (EngineKind.VLLM, "gpu.big", ("gpt-5-big",))
    assert model.engine_args == {"tensor_parallel_size": 2, "dtype": "bfloat16"}
    assert file(tmp_path).read_text().startswith(before.rstrip()), "comments and order are as they were"
    assert PACKAGED_FILE.read_text() == before


def test_second_vllm_model_gets_own_queue_and_reports_its_process(run: Run, tmp_path: Path) -> None:
    weights = str(tmp_path / "weights")

    said = run("add", "Big/Model", "--path", weights)
    run("add", "big.model", "--path", weights)
    with pytest.raises(CliError, match=r"gpu\.big-model has Big/Model"):
        run("add", "more", "--path", weights, "--queue", "gpu.big-model")
    run("remove", "smollm2-135m-instruct")
    run("add", "usual", "--path", weights)

    models = Registry.read(file(tmp_path)).models
    queues = {name: models[name].queue for name in ("Big/Model", "big.model", "usual")}
    assert queues == {"Big/Model": "gpu.big-model", "big.model": "gpu.big-model-2", "usual": "gpu.generate"}
    assert said.splitlines()[1] == "`nightmill up` starts a process of its own for it, gpu.big-model"


@pytest.mark.parametrize(
    ("adds_models", "says"),
    [(True, "a process of its own, gpu.big, starts in a moment"), (False, "`gpu-big: python -m workers gpu gpu.big`")],
)
def test_a_running_deployment_starts_the_process_or_needs_a_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adds_models: bool, says: str
) -> None:
    running = {"adds_models": adds_models, "processes": [{"name": "gpu"}]}
    monkeypatch.setattr("cli.up.folder.DataFolder.live_run", lambda _: running)

    assert says in run("add", "big", "--path", str(tmp_path))


def test_prompts_of_models_that_embed_are_listed(run: Run, tmp_path: Path) -> None:
    assert "prompts" not in run("list")

    run("add", "e", "--path", str(tmp_path), "--engine", "embed", "--set", "query_prompt='query: '")

    listed = {row["name"]: row for row in map(json.loads, run("list", "--json").splitlines())}
    assert (listed["e"]["query_prompt"], listed["e"]["passage_prompt"]) == ("query: ", None)
    assert "'query: ' / ''" in run("list")


def test_added_model_is_removed_without_trace(run: Run, tmp_path: Path) -> None:
    run("add", "far", "--url", "https://models.example/v1", "--api-key-env", "FAR_KEY", "--upstream", "far-1")
    with_far = Registry.read(file(tmp_path)).models["far"]

    run("remove", "far")

    assert (with_far.engine, with_far.external, with_far.upstream) == (EngineKind.HTTP, True, "far-1")
    assert file(tmp_path).read_text().rstrip() == PACKAGED_FILE.read_text().rstrip()


def test_the_first_and_the_last_model_can_go(run: Run, tmp_path: Path) -> None:
    run("remove", "smollm2-135m-instruct")
    assert list(Registry.read(file(tmp_path)).models) == ["all-minilm-l6-v2"]

    run("remove", "all-minilm-l6-v2")
    assert list(Registry.read(file(tmp_path)).models) == []

    run("add", "again", "--path", str(tmp_path))
    assert list(Registry.read(file(tmp_path)).models) == ["again"]


def test_comments_of_remaining_models_survive_removal(run: Run, tmp_path: Path) -> None:
    file(tmp_path).parent.mkdir()
    source = "    source: {urls: ['http://a/v1']}\n    engine: http\n"
    one = f"  a:\n{source}    # fast\n"
    rest = f"\n  # do not touch: prod\n  b:\n{source}\n# the end\n"
    file(tmp_path).write_text(f"# ours\nmodels:  # by name\n{one}{rest}")

    run("remove", "a")
    assert file(tmp_path).read_text() == f"# ours\nmodels:  # by name\n{rest}"

    run("remove", "b")
    assert file(tmp_path).read_text() == "# ours\nmodels: {}  # by name\n\n  # do not touch: prod\n\n# the end\n"

    run("add", "c", "--url", "http://c/v1")
    assert list(Registry.read(file(tmp_path)).models) == ["c"]
    assert "models:  # by name\n" in file(tmp_path).read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("add", "smollm2-135m-instruct", "--path", "."), "already"),
        (("add", "m"), "say where the model comes from"),
        (("add", "m", "--path", ".", "--url", "http://a/v1"), "exactly one of"),
        (("add", "m", "--path", ".", "--revision", COMMIT), "--revision names a commit of a --repo"),
        (("add", "m", "--path", ".", "--alias", "all-minilm-l6-v2"), "already names"),
        (("add", "m", "--path", ".", "--set", "odd"), "no engine argument"),
        (("add", "m", "--path", ".", "--set", "a={"), "^'a={' is no engine argument: its value is no YAML$"),
        (("add", "m", "--path", ".", "--set", "a=2026-13-01"), "its value is no YAML"),
        (("remove", "nothing"), "no model 'nothing'"),
        (("pull", "nothing"), "no model 'nothing'"),
        (("pull", "all-minilm-l6-v2"), "does not come from the hub"),
    ],
)
def test_invalid_command_writes_no_models_file(run: Run, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    with pytest.raises(CliError, match=told):
        run(*words)

    assert not file(tmp_path).exists()


@pytest.mark.parametrize("words", [("add", "m", "--path", "."), ("remove", "m")])
@pytest.mark.parametrize("content", [b"models: {", b"- models\n", b"models", b"\xff", b"models: {a: 2026-13-01}"])
def test_invalid_models_file_is_reported_and_left_unchanged(
    run: Run, tmp_path: Path, words: tuple[str, ...], content: bytes
) -> None:
    file(tmp_path).parent.mkdir()
    file(tmp_path).write_bytes(content)

    with pytest.raises(CliError, match=re.escape(str(file(tmp_path)))):
        run(*words)

    assert file(tmp_path).read_bytes() == content


def test_a_model_that_makes_the_file_wrong_can_be_removed(run: Run, tmp_path: Path) -> None:
    run("remove", "all-minilm-l6-v2")
    file(tmp_path).write_text(file(tmp_path).read_text().rstrip() + "\n  odd: {since: 2026-13-01}\n")

    run("remove", "odd")

    assert list(Registry.read(file(tmp_path)).models) == ["smollm2-135m-instruct"]


def test_a_hub_model_is_pinned_and_fetched_at_its_revision(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(repo: str, **options: Any) -> str:
        asked.append((repo, options))
        return "/cache/there"

    hub = SimpleNamespace(model_info=lambda _repo, token: SimpleNamespace(sha=COMMIT), snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    run("add", "hubbed", "--repo", "org/name")
    told = run("pull", "hubbed")

    assert Registry.read(file(tmp_path)).models["hubbed"].source.revision == COMMIT
    assert asked == [("org/name", {"token": "hf_secret", "revision": COMMIT})]
    assert told == "/cache/there\n"
    assert "hf_secret" not in file(tmp_path).read_text()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("Gated repository.\nLong explanation"), r"Gated repository\."),
        (httpx.ConnectError("[Errno -2] Name or service not known"), r"\[Errno -2\] Name or service not known"),
        (httpx.ReadTimeout(""), "ReadTimeout"),
    ],
)
def test_hub_error_is_reported_in_single_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def refuse(_repo: str, **_options: Any) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(model_info=refuse))

    with pytest.raises(CliError, match=rf"^cannot get org/name from the hub: {told}$"):
        run("add", "m", "--repo", "org/name")


def test_the_list_says_where_each_comes_from(run: Run, tmp_path: Path) -> None:
    run("add", "hubbed", "--repo", "org/name", "--revision", COMMIT)

    shown = run("list")
    rows = [json.loads(line) for line in run("list", "--json").splitlines()]

    assert f"org/name@{COMMIT[:12]}" in shown
    assert "packaged all-minilm-l6-v2" in shown
    assert f"file: {file(tmp_path)}" in shown
    assert [row["workers"] for row in rows] == [0, 0, 0]


def test_models_of_engine_urls_are_listed_with_models_of_file(
    run: Run, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", db.url)
    monkeypatch.setenv("NIGHTMILL_OPENAI_ALIASES", "true")
    with db.write() as session:
        workers.store_models(session, {"far": True, "gpt-4o-mini": True}, Queue.GENERATE)
        workers.register(session, worker_row("gpu-1", Queue.GENERATE, "far"))

    listed = {row["name"]: row for row in map(json.loads, run("list", "--json").splitlines())}

    assert set(listed) == {"smollm2-135m-instruct", "all-minilm-l6-v2", "far"}, "an alias of the file is no other model"
    assert (listed["far"]["source"], listed["far"]["queue"]) == ("NIGHTMILL_ENGINE_URLS", Queue.GENERATE)
    assert (listed["far"]["external"], listed["far"]["workers"]) == (True, 1)
    assert "NIGHTMILL_ENGINE_URLS" in run("list")


def test_a_server_that_cannot_be_reached_is_added_with_a_warning(run: Run, tmp_path: Path) -> None:
    url = reachable_url("127.0.0.1", take_free("127.0.0.1"))

    done = run.whole("add", "far", "--url", f"{url}/v1")  # type: ignore[attr-defined]

    assert done.stdout == f"far added to {file(tmp_path)}\n"
    assert done.stderr.startswith(f"warning: {url}/v1 is unreachable: ")
    assert "far" in Registry.read(file(tmp_path)).models


def test_a_key_that_cannot_be_read_is_a_warning(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY_FILE", str(tmp_path / "none"))

    done = run.whole("add", "far", "--url", "http://127.0.0.1:9/v1", "--api-key-env", "FAR_KEY")  # type: ignore[attr-defined]

    assert (done.exit_code, done.stderr) == (
        0,
        "warning: FAR_KEY_FILE: its file cannot be read (No such file or directory)\n",
    )


@pytest.mark.parametrize(
    ("name", "status", "body", "told"),
    [
        ("m", 200, {"data": [{"id": "m"}]}, ""),
        ("m", 200, {"data": [{"id": "a"}, {"id": "b"}]}, "does not list m; it lists a, b"),
        ("m", 200, {"data": []}, "does not list m; it lists nothing"),
        ("m", 200, {"odd": 1}, ""),
        ("m", 404, {}, ""),
        ("m", 401, {}, "refuses the key"),
    ],
)
def test_a_server_says_whether_it_has_the_model(name: str, status: int, body: dict[str, Any], told: str) -> None:
    asked: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.extend((self.path, self.headers["Authorization"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        found = upstream.fault(f"http://127.0.0.1:{server.server_port}/v1/", "sk-1", name)

    assert found == told
    assert asked == ["/v1/models", "Bearer sk-1"]


def test_a_key_goes_to_the_named_server_alone_and_into_no_message() -> None:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(307)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        found = [upstream.fault(url, key, "m") for key in ("sk-1", "sk-secret\n", "sk-sécret")]
        server.shutdown()

    assert asked == ["/v1/models"]
    assert found[0] == ""
    assert not any("sk-" in told or not told for told in found[1:])


def test_list_reports_state_of_each_model(
    run: Run, tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", db.url)
    file(tmp_path).parent.mkdir(parents=True)
    file(tmp_path).write_text("""
models:
  away: {source: {urls: ["http://127.0.0.1:9"]}, engine: http}
  there: {source: {urls: ["http://127.0.0.1:9"]}, engine: http}
  slow: {source: {packaged: all-minilm-l6-v2}, engine: embed}
  other: {source: {packaged: all-minilm-l6-v2}, engine: embed, queue: gpu.other}
""")
    holds = {"slow": {"entry": "e", "up": False, "since": 1.0, "phase": "reading the weights"}}
    with db.write() as session:
        workers.register(session, worker_row("gpu-1", Queue.GENERATE, "there"))
        workers.register(session, worker_row("embed-1", Queue.EMBED, pool="embed", state="starting", engines=holds))

    rows = {row["name"]: row for row in map(json.loads, run("list", "--json").splitlines())}

    assert {name: (row["state"].partition(",")[0], row["workers"]) for name, row in rows.items()} == {
        "away": ("unreachable", 0),
        "there": ("ready", 1),
        "slow": ("loading slow (reading the weights)", 0),
        "other": ("no worker", 0),
    }
    assert "unreachable" in run("list")
