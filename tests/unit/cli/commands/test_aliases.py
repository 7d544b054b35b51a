"""`nightmill aliases` against a web process in which nobody works: what it sends, and what it shows."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from tests.support.web import make_key, running_app, serve

Run = Callable[..., Result]
MODEL, OTHER = "smollm2-135m-instruct", "all-minilm-l6-v2"


@pytest.fixture
def run(tmp_path: Path, sqlite_url: str) -> Iterator[Run]:
    with running_app(tmp_path, sqlite_url) as web, serve(web) as url:
        where = ["--url", url, "--api-key", make_key(web)]
        yield lambda *words: CliRunner().invoke(app, ["aliases", words[0], *where, *words[1:]])


def output(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_alias_is_shared_shown_and_taken_back(run: Run) -> None:
    assert output(run("set", "support-bot", MODEL)) == f"support-bot stands for {MODEL}"
    both = f"support-bot stands for {MODEL} 80 %, {OTHER} 20 %"
    options = ["--target", f"{OTHER}=20", "--sticky", "--fallback", MODEL, "--reason", "new"]
    assert output(run("set", "support-bot", MODEL, *options)) == both

    assert output(run("show", "support-bot")).startswith(f"{both}, the same for each user, else for {MODEL} since")
    assert output(run("revert", "support-bot", "--reason", "too slow")) == f"support-bot stands for {MODEL}"
    rows = [json.loads(line) for line in output(run("moves", "support-bot", "--json")).split("\n")]
    moves = [(row["action"], row["reason"]) for row in rows]
    assert moves == [("revert", "too slow"), ("update", "new"), ("create", None)]
    assert "too slow" in output(run("moves", "support-bot"))
    assert "project" in output(run("list"))


def test_alias_of_the_past_is_shown(run: Run) -> None:
    output(run("set", "support-bot", MODEL))

    assert output(run("show", "support-bot", "--at", "2100-01-01")).startswith(f"support-bot stands for {MODEL} since")
    assert run("show", "support-bot", "--at", "2000-01-01").exit_code == 1
    assert "is no time" in str(run("show", "support-bot", "--at", "yesterday").exception)


@pytest.mark.parametrize("target", [OTHER, "=20", f"{OTHER}=", f"{OTHER}=-1", f"{OTHER}=1.5", f"{OTHER}=100"])
def test_target_without_a_share_is_refused(run: Run, target: str) -> None:
    refused = run("set", "support-bot", MODEL, "--target", target)

    assert refused.exit_code == 1
    assert "support-bot" not in output(run("list"))


def test_shadow_stays_until_the_alias_is_set_without_it(run: Run) -> None:
    options = ["--shadow", OTHER, "--shadow-share", "50", "--shadow-compare", "exact_match"]
    output(run("set", "support-bot", MODEL, *options))

    shadow = f"shadow {OTHER} 50 %"
    counts = "0 of 0 requests sent, 0 dropped, 0 failed, 0 of 0 answers the same"
    assert output(run("show", "support-bot")).endswith(f"\n{shadow}: {counts}")
    assert output(run("show", "support-bot", "--at", "2100-01-01")).endswith(f"\n{shadow}")
    assert "is a target" in str(run("set", "support-bot", MODEL, "--shadow", MODEL).exception)
    output(run("set", "support-bot", MODEL))
    assert "shadow" not in output(run("show", "support-bot"))
