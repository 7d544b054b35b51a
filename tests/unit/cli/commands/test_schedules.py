"""`nightmill schedules` against a web process in which nobody works: what it sends, and what it shows."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from tests.support.inline_deployment import chat_line, jsonl
from tests.support.web import make_key, running_app, serve
from tests.unit.cli.commands.test_pipelines import STEPS, output

Run = Callable[..., Result]
BATCH = """
type: batch
input_file_id: {file: questions.jsonl}
endpoint: /v1/chat/completions
completion_window: 24h
"""


@pytest.fixture
def run(tmp_path: Path, sqlite_url: str) -> Iterator[Run]:
    with running_app(tmp_path, sqlite_url) as web, serve(web) as url:
        where = ["--url", url, "--api-key", make_key(web)]
        yield lambda *words: CliRunner().invoke(app, [*words, *where])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "questions.jsonl").write_bytes(jsonl([chat_line("q1", "How do I reset my router?")]))
    path = tmp_path / "nightly.yaml"
    path.write_text(STEPS)
    return path


def create(run: Run, file: Path, *more: str) -> Result:
    return run("schedules", "create", str(file), "--every", "0 3 * * *", *more)


def test_pipeline_in_a_file_is_scheduled_with_its_files_uploaded(run: Run, file: Path) -> None:
    schedule = output(create(run, file, "--timezone", "Europe/Zurich"))

    listed = output(run("schedules", "list"))
    assert all(text in listed for text in (schedule, "0 3 * * * Europe/Zurich", "pipeline", "active"))
    shown = json.loads(output(run("schedules", "show", schedule, "--json")))
    assert [step["name"] for step in shown["job"]["steps"]] == ["ask", "again"]
    assert output(run("files", "list")).count("questions.jsonl") == 2
    assert f"{schedule} active" in output(run("schedules", "show", schedule))
    assert "completion_window: 24h" in output(run("schedules", "show", schedule))


def test_job_in_a_file_is_scheduled_by_its_type(run: Run, file: Path) -> None:
    file.write_text(BATCH)

    schedule = output(create(run, file))

    shown = json.loads(output(run("schedules", "show", schedule, "--json")))
    assert (shown["kind"], shown["batch"]["completion_window"]) == ("batch", "24h")
    assert "/v1/chat/completions" in output(run("schedules", "show", schedule))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type: [", "is not YAML"),
        ("- a", "has neither a 'type'"),
        (BATCH.replace("type: batch", ""), "has neither a 'type'"),
        (BATCH.replace("questions", "nothing"), "is no file; nothing was uploaded"),
        (BATCH.replace("24h", "1x"), "1x"),
        (BATCH.replace("type: batch", "type: dance"), "dance"),
    ],
)
def test_unusable_file_is_refused(run: Run, file: Path, text: str, message: str) -> None:
    file.write_text(text)

    refused = create(run, file)

    assert (refused.exit_code, message in str(refused.exception)) == (1, True), refused.exception
    assert "sched_" not in output(run("schedules", "list"))
