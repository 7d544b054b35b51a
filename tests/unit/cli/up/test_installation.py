"""An installation writes to `run.json` the addresses that answer."""

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from cli.up import procfile
from cli.up.folder import DataFolder
from cli.up.installation import Installation, Notices
from cli.up.service import Program, Service
from jobs.fleet.models_file import PACKAGED_FILE
from jobs.security.sign_in import exchange
from jobs.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.make()
    (folder.path / "operator.key").write_text("sk-operator")
    return folder


def published(folder: DataFolder, names: Sequence[str], **settings: object) -> dict[str, object]:
    config = Settings(data_dir=folder.path, port=8000, flower_port=8001, **settings)  # type: ignore[arg-type]
    services = [Service(Program(name, ("true",), {}, folder.path, folder.logs / name)) for name in names]
    here = Installation(config, folder, procfile.CODE, 1, verbose=False)
    here._publish(services)
    return folder.read_run()


@pytest.mark.parametrize(
    ("host", "flower"),
    [
        ("127.0.0.1", "http://127.0.0.1:8001"),
        ("127.0.0.2", "http://127.0.0.2:8001"),
        ("0.0.0.0", "http://127.0.0.1:8001"),
        ("::", "http://[::1]:8001"),
    ],
)
def test_flower_url_uses_configured_listen_address(folder: DataFolder, host: str, flower: str) -> None:
    assert published(folder, ["web", "flower"], flower_host=host)["flower_url"] == flower


def test_a_flower_that_no_line_starts_has_no_address(folder: DataFolder) -> None:
    assert published(folder, ["web"])["flower_url"] is None


def test_run_file_contains_path_of_models_file(folder: DataFolder) -> None:
    assert published(folder, ["web"], models_file="/srv/models.yaml")["models_file"] == "/srv/models.yaml"


def test_run_file_contains_stop_time(folder: DataFolder) -> None:
    here = Installation(Settings(data_dir=folder.path, shutdown_seconds=7), folder, procfile.CODE, 1, verbose=False)

    assert here.plan([]).shutdown_seconds == 7
    assert published(folder, ["web"], shutdown_seconds=7)["stop_seconds"] == 54


def test_openai_aliases_setting_reaches_processes_and_run_file(folder: DataFolder) -> None:
    config = Settings(data_dir=folder.path, openai_aliases=True)
    here = Installation(config, folder, procfile.CODE, 1, verbose=False)

    assert here.environment()["NIGHTMILL_OPENAI_ALIASES"] == "true"
    assert published(folder, ["web"], openai_aliases=True)["openai_aliases"] is True
    assert published(folder, ["web"])["openai_aliases"] is False


def test_readiness_is_checked_on_local_port(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("cli.up.readiness.tell_when_up", lambda url, *_: asked.append(url))
    config = Settings(data_dir=folder.path, port=8000, public_url="https://batch.example")

    here = Installation(config, folder, procfile.CODE, 1, verbose=False)
    here._announce(
        [procfile.Line("web", ("true",))], cast(Notices, SimpleNamespace(say=print, update=print)), threading.Event()
    )

    assert asked == ["http://127.0.0.1:8000"]


def test_browser_link_is_printed_once_ready(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("cli.up.readiness.tell_when_up", lambda _url, _pools, ready, *_: ready())
    here = Installation(Settings(data_dir=folder.path, port=8000), folder, procfile.CODE, 1, verbose=False)

    notices = SimpleNamespace(say=told.append, show=told.append, update=told.append)
    here._announce([procfile.Line("web", ("true",))], cast(Notices, notices), threading.Event())

    assert any(line.startswith("in a browser: http://127.0.0.1:8000/ ") for line in told)


@pytest.mark.parametrize("terminal", [True, False])
def test_link_to_the_console_is_shown_in_a_terminal_and_logged_nowhere(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    logged, shown = list[str](), list[str]()
    monkeypatch.setattr("cli.up.readiness.tell_when_up", lambda _url, _pools, ready, *_: ready())
    monkeypatch.setattr("cli.up.readiness.console_path", lambda _url: "/console/")
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    config = Settings(data_dir=folder.path, port=8000, public_url="https://mill.example/")
    here = Installation(config, folder, procfile.CODE, 1, verbose=False)

    notices = SimpleNamespace(say=logged.append, show=shown.append, update=logged.append)
    here._announce([procfile.Line("web", ("true",))], cast(Notices, notices), threading.Event())

    [line] = [line for line in shown if line.startswith("console: https://mill.example/console/")]
    assert ("#token=" in line) is terminal
    assert ("`nightmill console`" in line) is not terminal
    assert not any("#token" in line for line in logged)
    if terminal:
        (folder.path / "operator.key").write_text("nm_operator")
        assert exchange(folder.path, line.partition("#token=")[2], 900) == "nm_operator"


@pytest.mark.parametrize("adds_models", [True, False])
def test_a_model_that_is_added_gets_its_process_once(folder: DataFolder, *, adds_models: bool) -> None:
    """With a Procfile of the operator's own its lines are all that runs."""
    config = Settings(data_dir=folder.path)
    lines = procfile.load(procfile.PACKAGED)
    plan = Installation(config, folder, procfile.CODE, 1, verbose=False, adds_models=adds_models).plan(lines)
    before = [service.name for service in plan.more()]

    large = "  big: {source: {path: weights}, engine: vllm, queue: gpu.big}\n"
    (folder.path / "models.yaml").write_text(f"{PACKAGED_FILE.read_text().rstrip()}\n{large}")
    after = [service.program.arguments[1:] for service in plan.more()]

    assert (before, after) == ([], [("-m", "workers", "gpu", "gpu.big")] if adds_models else [])
    assert plan.more() == []
