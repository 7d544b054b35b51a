"""The doctor says what is broken and how to fix it, and is not alarmed by what is merely not there yet."""

import http.server
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from sqlalchemy import text
from typer.testing import CliRunner

from cli.doctor import installed, stored
from cli.doctor.command import examine
from cli.doctor.findings import Finding, Severity
from cli.main import app
from jobs.db.engine import Database
from jobs.fleet import runtimes, workers
from jobs.fleet.runtimes import Candidate, RuntimeRecord
from jobs.platform.storage import DiskStorage, Space
from jobs.queues import Queue
from jobs.setting_groups import MB
from tests.support import tuned_adapters
from tests.support.interactive_api import running_broker
from tests.support.worker_rows import worker_row
from workers.sandbox.confinement import FORK_PARTS, PARTS

Examine = Callable[..., dict[str, Finding]]


@pytest.fixture
def diagnosis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Return a function that returns the doctor's findings about an empty data folder, by check."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("NIGHTMILL_PORT", str(probe.getsockname()[1]))
    monkeypatch.setenv("NIGHTMILL_FLOWER_PORT", "1")

    def diagnosis(**settings: str) -> dict[str, Finding]:
        for name, value in settings.items():
            monkeypatch.setenv(f"NIGHTMILL_{name.upper()}", value)
        return {finding.check: finding for finding in examine(tmp_path)}

    return diagnosis


class _Models(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path == "/v1/models"
        self.send_response(404 if not known else 200 if self.headers["authorization"] == "Bearer right" else 401)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "some-model"}]}')

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def engine() -> Iterator[str]:
    with _serving(_Models) as url:
        yield url


@contextmanager
def _serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def _dead_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_new_installation_is_sound(diagnosis: Examine) -> None:
    assert [one for one in diagnosis().values() if one.health is Severity.BROKEN] == []


def test_source_folder_overlapping_data_folder_is_warning(diagnosis: Examine, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    paths = [str(tmp_path), str(tmp_path.parent), str(tmp_path / "docs"), str(tmp_path / "link"), f"{tmp_path}-docs"]

    found = diagnosis(source_folders=",".join(paths))

    health = {path: found[f"source folder {path}"].health for path in paths}
    assert health == {**dict.fromkeys(paths[:4], Severity.WARNING), paths[4]: Severity.FINE}
    assert "NIGHTMILL_SOURCE_FOLDERS" in found[f"source folder {paths[0]}"].fix


def test_broken_components_are_reported_with_fixes_and_without_secrets(diagnosis: Examine, tmp_path: Path) -> None:
    dead = _dead_port()
    (tmp_path / "models.yaml").write_text("models: {x: {engine: warp}}")

    found = diagnosis(
        database_url=f"postgresql://u:secret@127.0.0.1:{dead}/none?password=secret",
        broker_url=f"redis://:secret@127.0.0.1:{dead}/0?password=secret",
        engine_urls=f"http://127.0.0.1:{dead}/v1",
        models_file=str(tmp_path / "models.yaml"),
        min_free_bytes=str(1 << 60),
    )

    sick = {name: one for name, one in found.items() if one.health is Severity.BROKEN}
    assert set(sick) == {"database", "broker", f"engine http://127.0.0.1:{dead}/v1", "models file", "disk"}
    assert all(one.fix for one in sick.values())
    assert "secret" not in json.dumps([one.to_json() for one in found.values()])


@pytest.mark.parametrize(
    ("printed", "returncode", "health", "named"),
    [
        ("", 0, Severity.FINE, ""),
        (
            "landlock\nuser_namespace\nnetwork_namespace\n",
            0,
            Severity.WARNING,
            "landlock, user_namespace, network_name",
        ),
        ("", 1, Severity.BROKEN, "does not start"),
    ],
)
def test_missing_features_of_parser_sandbox_are_reported(
    diagnosis: Examine, monkeypatch: pytest.MonkeyPatch, printed: str, returncode: int, health: Severity, named: str
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1:])
        return subprocess.CompletedProcess(command, returncode, stdout=printed)

    monkeypatch.setattr("jobs.programs.subprocess.run", run)

    found = diagnosis()["parsers"]

    assert (found.health, bool(found.fix)) == (health, health is not Severity.FINE)
    assert asked == [["workers.sandbox"], ["forks"]]
    assert named in found.message


@pytest.mark.parametrize(("printed", "returncode"), [("", 1), ("pid_namespace\nlandlock\n", 0)])
def test_unavailable_python_graders_are_reported_with_fix(
    diagnosis: Examine, monkeypatch: pytest.MonkeyPatch, printed: str, returncode: int
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, returncode, stdout=printed)

    monkeypatch.setattr("jobs.programs.subprocess.run", run)

    found = diagnosis()["python graders"]

    assert (found.health, bool(found.fix)) == (Severity.WARNING, True)
    assert "refused" in found.message


def test_every_part_of_the_sandbox_has_a_mend() -> None:
    assert {*PARTS, *FORK_PARTS} == set(installed._SANDBOX)


def test_parser_sandbox_check_succeeds_in_real_subprocess(diagnosis: Examine) -> None:
    assert diagnosis()["parsers"].health in (Severity.FINE, Severity.WARNING)


def test_interactive_clients_need_redis_in_addition_to_rabbitmq(diagnosis: Examine) -> None:
    rabbit = f"amqp://u:secret@127.0.0.1:{_dead_port()}//"

    embedded = diagnosis()
    without = diagnosis(broker_url=rabbit)["interactive clients"]
    unreachable = diagnosis(broker_url=rabbit, streams_url=f"redis://:secret@127.0.0.1:{_dead_port()}/0")

    assert (without.health, "NIGHTMILL_STREAMS_URL" in without.fix) == (Severity.WARNING, True)
    assert unreachable["interactive clients"].health is Severity.BROKEN
    assert "secret" not in unreachable["interactive clients"].message
    assert "interactive clients" not in embedded


def test_a_setting_that_can_not_be_read_is_named(diagnosis: Examine) -> None:
    found = diagnosis(port="many")

    assert found["settings"].health is Severity.BROKEN
    assert "NIGHTMILL_PORT" in found["settings"].message


def test_prompts_of_embedding_model_are_reported(diagnosis: Examine, tmp_path: Path) -> None:
    model = {"source": {"packaged": "all-minilm-l6-v2"}, "engine": "embed", "engine_args": {"query_prompt": "query: "}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": {"e": model}}))

    assert diagnosis()["model e"].message == "engine embed, queue gpu.embed, before queries 'query: '"


def test_a_model_that_can_not_rewrite_queries_is_named(diagnosis: Examine) -> None:
    assert "rewrite_query" not in diagnosis()
    assert diagnosis(rewrite_model="smollm2-135m-instruct")["rewrite_query"].health is Severity.FINE
    for name in ("all-minilm-l6-v2", "nobody"):
        found = diagnosis(rewrite_model=name)["rewrite_query"]
        assert (found.health, name in found.message) == (Severity.WARNING, True)
    assert "rewrite_query" not in diagnosis(engine_urls="http://127.0.0.1:9/v1")


@pytest.mark.parametrize("suffix", ["/v1", "/v1/", "/", ""])
def test_attached_engine_is_queried_for_its_models(diagnosis: Examine, engine: str, suffix: str) -> None:
    url = engine.removesuffix("/v1") + suffix

    found = diagnosis(engine_urls=url, engine_api_key="right")[f"engine {url}"]

    assert (found.health, found.message) == (Severity.FINE, "serves some-model")


def test_an_attached_engine_that_refuses_the_key_is_broken(diagnosis: Examine, engine: str) -> None:
    found = diagnosis(engine_urls=engine, engine_api_key="wrong")[f"engine {engine}"]

    assert found.health is Severity.BROKEN
    assert "401" in found.message


class _Tgi(_Models):
    def do_GET(self) -> None:
        known = self.path == "/info"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(b'{"router": "text-generation-router", "version": "3.3.6"}' if known else b"")


def test_a_server_that_fetches_images_from_texts_is_named(diagnosis: Examine, tmp_path: Path) -> None:
    with _serving(_Tgi) as url:
        model = {"source": {"urls": [url]}, "engine": "http"}
        (tmp_path / "models.yaml").write_text(json.dumps({"models": {"m": model}}))
        found = diagnosis(engine_urls=url)
        refusing = diagnosis(engine_urls=url, refuse_text_images="true")

    what = f"images in text at {url.removesuffix('/v1')}"
    assert (found[what].health, found[what].fix) == (Severity.WARNING, "set NIGHTMILL_REFUSE_TEXT_IMAGES=true")
    assert (found[f"engine {url}"].health, "404" in found[f"engine {url}"].message) == (Severity.WARNING, True)
    assert what not in refusing


def test_a_database_of_an_older_version_is_to_be_migrated(
    diagnosis: Examine, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = diagnosis(database_url=sqlite_url)["database"]
    monkeypatch.setattr("alembic.script.ScriptDirectory.get_heads", lambda _: ["another"])

    older = diagnosis(database_url=sqlite_url)["database"]

    assert current.health is Severity.FINE
    assert (older.health, older.fix) == (Severity.BROKEN, "python -m jobs.bootstrap")


def test_a_database_from_before_the_baseline_is_to_be_migrated_by_another_version(
    diagnosis: Examine, sqlite_url: str
) -> None:
    db = Database(sqlite_url)
    with db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0046'"))
    db.close()

    finding = diagnosis(database_url=sqlite_url)["database"]

    assert (finding.health, "['0046']" in finding.message) == (Severity.BROKEN, True)
    assert "commit 1e3ca3bd" in finding.fix


def test_whole_tuned_models_that_no_process_serves_are_reported(
    diagnosis: Examine, sqlite_url: str, tmp_path: Path
) -> None:
    before = diagnosis(database_url=sqlite_url)
    db = Database(sqlite_url)
    tuned_adapters.tuned_model(db, DiskStorage(tmp_path / "stored"), "ft:m:acme::abc", method="full")
    unserved = diagnosis()["tuned models"]
    with db.write() as session:
        workers.register(session, worker_row("tuned-1", Queue.TUNED, "*", pool="tuned"))
    db.close()

    assert (unserved.health, "--with tuned" in unserved.fix) == (Severity.WARNING, True)
    assert "tuned models" not in before
    assert "tuned models" not in diagnosis()


@pytest.mark.verify
def test_a_port_that_is_taken_is_broken_while_nothing_runs(diagnosis: Examine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = diagnosis(port=str(taken.getsockname()[1]))

    assert found["port of api"].health is Severity.BROKEN


def test_process_with_mismatched_start_time_is_reported_as_broken(diagnosis: Examine, tmp_path: Path) -> None:
    one = {"name": "gpu", "pid": 1, "started": 1, "restarts": 3, "state": "running"}
    (tmp_path / "run.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "processes": [one]}))

    found = diagnosis()

    assert found["process gpu"].health is Severity.BROKEN
    assert found["api"].health is Severity.BROKEN
    assert found["broker"].health is Severity.BROKEN


def test_restarting_process_reports_last_exit_and_restart_delay(diagnosis: Examine, tmp_path: Path) -> None:
    waits = {"name": "gpu", "pid": None, "started": None, "restarts": 9, "state": "waiting"}
    ending = {"ending": "exit code 1", "delay": 15.0}
    (tmp_path / "run.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "processes": [waits | ending]}))

    told = diagnosis()["process gpu"].message

    assert told == "does not run (waiting; last: exit code 1, started again after 15 s), restarted 9 times"


def test_a_disk_without_free_inodes_is_broken(diagnosis: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "space_at", lambda _path: Space(bytes=1 << 40, inodes=0))

    found = diagnosis()["disk"]

    assert (found.health, "no free inodes" in found.message) == (Severity.BROKEN, True)


def test_the_exit_code_says_whether_something_is_broken(diagnosis: Examine, tmp_path: Path) -> None:
    diagnosis()
    sound = CliRunner().invoke(app, ["doctor", "--data-dir", str(tmp_path), "--json"])
    diagnosis(min_free_bytes=str(1 << 60))
    sick = CliRunner().invoke(app, ["doctor", "--data-dir", str(tmp_path)])

    assert (sound.exit_code, sick.exit_code) == (0, 1)
    assert {json.loads(line)["health"] for line in sound.stdout.splitlines()} <= {"fine", "warning"}
    assert "to fix it: make room" in sick.stdout


MINI = "embeddings of all-minilm-l6-v2"


def test_measured_runtimes_are_shown_with_their_figures(diagnosis: Examine, tmp_path: Path) -> None:
    before = diagnosis()[MINI]
    candidates = (
        Candidate("torch", "float32", 31.0, 1, 1),
        Candidate("torch", "bfloat16", 80.5, 0.99995, 0.9999),
        Candidate("onnx", "int8", 99.0, 0.9939, 0.9883, refused="mean cosine 0.9939 is below 0.999"),
        Candidate("onnx", "float32", refused="NotExportable: too large"),
    )
    folder = tmp_path / "models" / "runtimes"
    folder.mkdir(parents=True)
    runtimes.write(folder, "k", RuntimeRecord("all-minilm-l6-v2", "some CPU", {}, 0.999, 1, 9.5, candidates, 1))

    after = diagnosis()[MINI]

    assert (before.health, before.message.startswith("torch; what is fastest is measured")) == (Severity.FINE, True)
    assert after.message == (
        "torch bfloat16 on some CPU; torch float32 31 texts/s (cosine 1.00000, least 1.00000); "
        "torch bfloat16 80.5 texts/s (cosine 0.99995, least 0.99990); "
        "onnx int8 99 texts/s (cosine 0.99390, least 0.98830), refused: mean cosine 0.9939 is below 0.999; "
        "onnx float32 not run, refused: NotExportable: too large"
    )


@pytest.mark.parametrize(
    ("args", "floor", "told"),
    [
        ("{dtype: bfloat16}", "0.999", "torch bfloat16, as its engine_args say"),
        ("{runtime: torch}", "0.999", "torch auto, as its engine_args say"),
        ("{}", "1", "torch, as NIGHTMILL_EMBEDDING_FLOOR=1 allows nothing else"),
    ],
)
def test_runtime_that_is_not_to_be_measured_is_shown_as_such(
    diagnosis: Examine, tmp_path: Path, args: str, floor: str, told: str
) -> None:
    entry = f"source: {{packaged: all-minilm-l6-v2}}, engine: embed, engine_args: {args}"
    (tmp_path / "models.yaml").write_text(f"models: {{all-minilm-l6-v2: {{{entry}}}}}")

    assert diagnosis(embedding_floor=floor)[MINI].message == told


@pytest.mark.parametrize(
    ("megabytes", "health", "told"),
    [
        (0, Severity.WARNING, "has no maxmemory"),
        (512, Severity.FINE, "answers"),
        (16, Severity.BROKEN, "broker_full: 1"),
    ],
)
def test_memory_of_the_broker_is_bounded_and_not_used_up(
    diagnosis: Examine, tmp_path_factory: pytest.TempPathFactory, megabytes: int, health: Severity, told: str
) -> None:
    with running_broker(tmp_path_factory.mktemp("broker")) as url, redis.Redis.from_url(url) as server:
        for _ in range(10):
            server.rpush("filled", bytes(MB))
        server.config_set("maxmemory", megabytes * MB)
        rabbit = f"amqp://u:secret@127.0.0.1:{_dead_port()}//"
        both = [
            diagnosis(broker_url=url.replace("unix:", "redis+socket:"))["broker"],
            diagnosis(broker_url=rabbit, streams_url=url.replace("unix:", "redis+socket:"))["interactive clients"],
        ]

    for found in both:
        assert (found.health, told in found.message, bool(found.fix)) == (health, True, health is not Severity.FINE)


def test_full_embedded_broker_is_reported(diagnosis: Examine, tmp_path: Path) -> None:
    with running_broker(tmp_path) as url, redis.Redis.from_url(url) as server:
        before = diagnosis()["broker"]
        server.config_set("maxmemory", MB)
        after = diagnosis()["broker"]

    assert (before.health, after.health) == (Severity.FINE, Severity.BROKEN)
    assert "broker_full" in after.message


def test_full_broker_makes_api_warning_instead_of_broken(diagnosis: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.up.readiness.look", lambda _: {"status": "broker_full", "database": "ok"})
    monkeypatch.setattr("cli.up.readiness.reachable_url", lambda *_: "http://127.0.0.1:1")

    found = diagnosis()["api"]

    assert (found.health, "broker_full" in found.message, bool(found.fix)) == (Severity.WARNING, True, True)


def test_two_models_of_vllm_need_two_queues(diagnosis: Examine, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("models:\n" + "".join(f"  {n}: {{source: {{path: .}}, engine: vllm}}\n" for n in "ab"))

    finding = diagnosis(models_file=str(file))["queue gpu.generate"]

    assert (finding.health, "a, b" in finding.message) == (Severity.BROKEN, True)
    assert f"a queue of its own in {file}: `queue: gpu.NAME`" in finding.fix


def test_models_exceeding_gpu_memory_are_reported(
    diagnosis: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "models.yaml"
    monkeypatch.setattr("cli.doctor.installed.shutil.which", lambda name: f"/usr/bin/{name}")
    models = "models:\n  a: {source: {path: .}, engine: vllm}\n  b: {source: {path: .}, engine: vllm, queue: gpu.b%s}\n"

    for args, told in (("", True), (", engine_args: {gpu_memory_utilization: 0.05}", False)):
        file.write_text(models % args)
        assert ("gpu memory" in diagnosis(models_file=str(file))) is told


def test_unserved_queue_is_reported_with_worker_command(
    diagnosis: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(
        "models:\n" + "".join(f"  {n}: {{source: {{path: .}}, engine: vllm, queue: gpu.{n}}}\n" for n in "abc")
    )
    loading = {"queue": "gpu.b", "model": "b", "phase": "importing vLLM", "since": 0.0}
    state = {"status": "ready", "database": "ok", "workers": {"gpu.a": 2}, "loading": [loading]}
    monkeypatch.setattr("cli.up.readiness.look", lambda _url: state)

    findings = diagnosis(models_file=str(file))

    assert "queue gpu.a" not in findings
    assert findings["queue gpu.b"].health is Severity.FINE
    lacking = findings["queue gpu.c"]
    assert (lacking.health, lacking.message) == (Severity.WARNING, "no worker serves it: c cannot be asked")
    assert "`python -m workers gpu gpu.c`" in lacking.fix
