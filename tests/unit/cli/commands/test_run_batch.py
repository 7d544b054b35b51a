"""`nightmill run-batch`: what it refuses before anything is sent, and its one file of results."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.errors import CliError
from cli.main import app
from tests.unit.cli.commands.test_results import answered, asked, chat, unanswered


class Server:
    """A server that answers the requests `b` and `a`, and not `c`. It ends a batch in `state`."""

    def __init__(self) -> None:
        self.state = "succeeded"
        self.uploaded: list[bytes] = []
        self.batches: list[dict[str, Any]] = []

    def upload(self, path: Path) -> str:
        self.uploaded.append(path.read_bytes())
        return "file-in"

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/batches/validate":
            return {"valid": True, "estimate": {"input_tokens": 1}, "eta_seconds": None, "requests": 3, "model": "m"}
        self.batches.append(body)
        return {"id": "batch_1"}

    def get(self, _path: str) -> dict[str, Any]:
        return {
            "id": "batch_1", "kind": "generation", "state": self.state, "created_at": 0,
            "output_file_id": "file-out", "error_file_id": "file-errors",
            "progress": {"total": 3, "completed": 2, "failed": 1}, "usage": {"input_tokens": 0, "output_tokens": 0},
        }  # fmt: skip

    def download(self, file_id: str, path: Path) -> None:
        lines = [answered(name, chat(name)) for name in "ba"] if file_id == "file-out" else [unanswered("c", "no")]
        path.write_bytes(b"".join(line + b"\n" for line in lines))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr("cli.commands.run_batch.connect", lambda *_: nullcontext(server))
    return server


def words(folder: Path) -> list[str]:
    file = folder / "in.jsonl"
    file.write_bytes(b"".join(map(asked, "bca")))
    return ["run-batch", "-i", str(file), "-o", str(folder / "out.jsonl"), "--model", "m"]


@pytest.mark.parametrize(("options", "window"), [([], "24h"), (["--window", "6h"], "6h")])
def test_results_are_single_file_in_input_order(
    server: Server, tmp_path: Path, options: list[str], window: str
) -> None:
    done = CliRunner().invoke(app, [*words(tmp_path), *options])

    assert done.exit_code == 0, done.output
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [result["custom_id"] for result in results] == ["b", "c", "a"]
    assert server.uploaded == [(tmp_path / "in.jsonl").read_bytes()]
    assert [batch["completion_window"] for batch in server.batches] == [window]


def test_failed_batch_writes_its_results_and_exits_nonzero(server: Server, tmp_path: Path) -> None:
    server.state = "expired"

    done = CliRunner().invoke(app, words(tmp_path))

    assert "batch_1 expired" in str(done.exception)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "flags", [["--max-model-len", "512", "--enforce-eager"], ["-tp", "2"], ["-O3"], ["-cc.mode=3"], ["odd"]]
)
def test_flags_of_an_engine_are_refused_by_name(server: Server, tmp_path: Path, flags: list[str]) -> None:
    done = CliRunner().invoke(app, [*words(tmp_path), *flags])

    assert flags[0][:4] in str(done.exception)
    assert "the deployment has its engines already" in str(done.exception)
    assert server.uploaded == []


@pytest.mark.parametrize("paths", [["-i", "https://example.com/in", "-o", "out"], ["-i", "in", "-o", "http://a/out"]])
def test_a_url_is_no_path(paths: list[str]) -> None:
    done = CliRunner().invoke(app, ["run-batch", *paths, "--model", "m"])

    assert isinstance(done.exception, CliError)
    assert "a path is taken, not a URL" in str(done.exception)


def test_lines_that_ask_for_another_model_are_refused(server: Server, tmp_path: Path) -> None:
    given = words(tmp_path)
    (tmp_path / "in.jsonl").write_bytes(asked("a").replace(b'"m"', b'"other"'))

    done = CliRunner().invoke(app, given)

    assert "asks for the model 'other', not for 'm'" in str(done.exception)
    assert server.uploaded == []


@pytest.mark.parametrize("output", ["none/out.jsonl", "."])
def test_unwritable_output_is_refused_before_upload(server: Server, tmp_path: Path, output: str) -> None:
    done = CliRunner().invoke(app, [*words(tmp_path), "-o", str(tmp_path / output)])

    assert isinstance(done.exception, CliError)
    assert server.uploaded == []
