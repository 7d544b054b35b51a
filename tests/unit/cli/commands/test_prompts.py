"""`nightmill prompts` against a web process in which nobody works: what it sends, and what it shows."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from tests.support.web import make_key, running_app, serve

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, sqlite_url: str) -> Iterator[Run]:
    with running_app(tmp_path, sqlite_url) as web, serve(web) as url:
        where = ["--url", url, "--api-key", make_key(web)]
        yield lambda *words: CliRunner().invoke(app, ["prompts", *words, *where])


def output(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_prompt_is_created_from_file_and_changed(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "prompt.json"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "Greet {{name}}."}], "model": "m"}))
    prompt = output(run("create", str(file), "--name", "greeting", "--instructions", "Be polite."))

    assert output(run("version", prompt, str(file), "--instructions", "Be brief.")) == "2"
    assert output(run("update", prompt, "--label", "next=2", "--default", "2")).endswith("default 2, labels next=2")
    assert output(run("update", prompt, "--label", "production=1", "--label", "next=")).endswith("production=1")
    shown = output(run("show", prompt, "--version", "production"))
    assert shown.startswith(f"{prompt} version 1")
    assert "Be polite.\nuser:\nGreet {{name}}." in shown
    assert "Be brief." in output(run("show", prompt))
    assert json.loads(output(run("list", "--json")))["id"] == prompt
    assert "greeting" in output(run("list"))


def test_versions_are_compared(run: Run) -> None:
    prompt = output(run("create", "--instructions", "Be polite.\nSay hello."))
    output(run("version", prompt, "--instructions", "Be brief.\nSay hello.", "--model", "m"))

    lines = output(run("diff", prompt, "1", "2")).split("\n")
    assert lines[:2] == ["--- version 1", "+++ version 2"]
    assert {"+m", "-Be polite.", "+Be brief.", " Say hello."} <= set(lines)
    assert output(run("diff", prompt, "1", "1")) == "no difference"


def test_archived_prompts_are_listed_on_demand(run: Run) -> None:
    prompt = output(run("create", "--instructions", "a"))

    assert output(run("archive", prompt)) == f"{prompt} archived"
    assert prompt not in output(run("list"))
    assert prompt in output(run("list", "--archived"))
    output(run("archive", prompt, "--undo"))
    assert prompt in output(run("list"))


def test_wrong_input_prints_a_single_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    prompt = output(run("create", "--instructions", "a"))

    for words, message in (
        (("create", str(tmp_path / "list.json")), "is no JSON object"),
        (("update", prompt, "--label", "production"), "LABEL=VERSION"),
        (("show", "pmpt_none"), "No prompt found"),
        (("create",), "'instructions', 'messages' or both"),
    ):
        result = run(*words)
        assert result.exit_code == 1
        assert message in str(result.exception or "") + result.output
