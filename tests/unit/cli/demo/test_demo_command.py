"""`nightmill demo`: what it starts, what it runs, and how long it says that it took."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner

from cli.demo import command, system
from cli.demo.command import describe_time, run_example
from cli.errors import CliError
from cli.main import app


def test_reported_time_includes_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_228.4)

    assert describe_time(141.2, None) == "[bold]141 s[/] for the demo"
    assert describe_time(141.2, 1_000.0) == "[bold]228 s[/] from nothing to here: 87 s of set-up, 141 s of the demo"
    assert describe_time(141.2, 2_000.0).startswith("[bold]141 s[/] from nothing to here: 0 s of set-up")


@pytest.mark.verify
def test_the_demo_answers_to_openais_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def running(_path: Path, options: list[str], _environment: dict[str, str], _port: int) -> NoReturn:
        asked.extend(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(system, "running", running)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    done = CliRunner().invoke(app, ["demo", "--data-dir", str(tmp_path), "--no-vllm"])

    assert asked == ["--no-vllm", "--openai-aliases"], done.output


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return an installation without processes, and make its folder that of the examples, too."""
    monkeypatch.setattr(command, "EXAMPLES", tmp_path)
    folder = SimpleNamespace(path=tmp_path, logs=tmp_path / "logs")
    return SimpleNamespace(folder=folder, url="http://127.0.0.1:9", api_key="nm_key", check=lambda: None)


def test_an_example_gets_the_server_and_its_options(up: Any, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "import os, sys\n"
        "given = [os.environ['OPENAI_BASE_URL'], os.environ['OPENAI_API_KEY'], *sys.argv[1:]]\n"
        "open('seen', 'w').write(' '.join(given))\n"
    )

    run_example(up, "one", ["--rows", "3"], time.monotonic() + 60)

    assert (tmp_path / "demo" / "seen").read_text() == "http://127.0.0.1:9/v1 nm_key --rows 3"


@pytest.mark.parametrize(
    ("script", "seconds", "told"),
    [("raise SystemExit(3)", 60, "has failed"), ("import time; time.sleep(60)", 0, "did not end in time")],
)
def test_failed_or_unfinished_example_is_reported(
    up: Any, tmp_path: Path, script: str, seconds: float, told: str
) -> None:
    (tmp_path / "one.py").write_text(script)

    with pytest.raises(CliError, match=told):
        run_example(up, "one", [], time.monotonic() + seconds)
