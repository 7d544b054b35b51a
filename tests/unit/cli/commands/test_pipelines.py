"""`nightmill pipelines` against a web process in which nobody works: what it sends, and what it shows."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from tests.support.inline_deployment import chat_line, jsonl
from tests.support.web import make_key, running_app, serve

Run = Callable[..., Result]
STEPS = """
name: nightly
steps:
  - name: ask
    kind: batch
    request:
      input_file_id: {file: questions.jsonl}
      endpoint: /v1/chat/completions
      completion_window: 24h
  - name: again
    kind: batch
    after: [ask]
    request:
      input_file_id: {file: questions.jsonl}
      endpoint: /v1/chat/completions
      completion_window: 24h
      metadata: {of: "{{ask.output_file_id}}"}
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


def output(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_file_of_steps_is_run_with_its_files_uploaded(run: Run, file: Path) -> None:
    pipeline = output(run("pipelines", "run", str(file)))

    shown = output(run("pipelines", "show", pipeline)).split("\n")
    assert shown[0].startswith(f"{pipeline} (nightly): in_progress")
    assert shown[1:] == ["  ask (batch): waiting", "  again (batch): waiting"]
    assert "0 of 2" in output(run("pipelines", "list"))
    assert json.loads(output(run("pipelines", "list", "--json")))["id"] == pipeline
    assert output(run("files", "list")).count("questions.jsonl") == 2


def test_steps_are_drawn_below_their_predecessors(run: Run, file: Path) -> None:
    pipeline = output(run("pipelines", "run", str(file)))

    assert output(run("pipelines", "graph", pipeline)).split("\n")[1:] == [
        "  ask (batch): waiting",
        "    again (batch): waiting, after ask",
    ]


def test_pipeline_is_cancelled_and_not_resumed_before_its_end(run: Run, file: Path) -> None:
    pipeline = output(run("pipelines", "run", str(file)))

    assert "cancelling" in output(run("pipelines", "cancel", pipeline))
    refused = run("pipelines", "resume", pipeline)
    assert (refused.exit_code, "has not ended" in str(refused.exception)) == (1, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [", "is not YAML"),
        ("- a", "has no list of 'steps'"),
        ("steps: [a]", "has no list of 'steps'"),
        (STEPS.replace("questions", "nothing"), "is no file; nothing was uploaded"),
        (STEPS.replace("ask.output_file_id", "ask.fine_tuned_model"), "ask.fine_tuned_model"),
    ],
)
def test_unusable_file_is_refused(run: Run, file: Path, text: str, message: str) -> None:
    file.write_text(text)

    refused = run("pipelines", "run", str(file))

    assert (refused.exit_code, message in str(refused.exception)) == (1, True), refused.exception
