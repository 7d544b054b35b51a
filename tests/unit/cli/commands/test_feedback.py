"""`nightmill feedback` against a web process in which nobody works: what it sends, and what it shows."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner, Result

from cli.main import app
from tests.support.web import make_key, running_app, serve, store_completion

Run = Callable[..., Result]


@pytest.fixture
def web(tmp_path: Path, sqlite_url: str) -> Iterator[FastAPI]:
    with running_app(tmp_path, sqlite_url) as web:
        yield web


@pytest.fixture
def run(web: FastAPI) -> Iterator[Run]:
    with serve(web) as url:
        where = ["--url", url, "--api-key", make_key(web)]
        yield lambda *words: CliRunner().invoke(app, ["feedback", words[0], *where, *words[1:]])


def output(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_thumbs_and_numbers_are_saved_and_listed(run: Run, web: FastAPI) -> None:
    chat = store_completion(web, model="small")
    saved = output(run("add", chat, "down", "--comment", "It names the wrong city.", "--user", "ada"))

    assert output(run("add", "--user", "ada", "--", chat, "-0.5")) == saved
    up = output(run("add", chat, "up"))
    rows = [json.loads(line) for line in output(run("list", "--json")).split("\n")]
    assert [(row["id"], row["score"], row["user"]) for row in rows] == [(up, 1.0, None), (saved, -0.5, "ada")]
    shown = output(run("list", "--max-score", "0", "--answer", chat, "--model", "small"))
    assert saved in shown
    assert up not in shown
    assert "ada" not in output(run("list", "--min-score", "0.5"))


def test_deleted_feedback_is_listed_no_more(run: Run, web: FastAPI) -> None:
    kept, gone = (output(run("add", store_completion(web), score)) for score in ("up", "down"))

    output(run("delete", gone))

    assert [json.loads(row)["id"] for row in output(run("list", "--json")).split("\n")] == [kept]
    assert "No feedback found" in str(run("delete", gone).exception)


def test_summary_shows_models_and_their_difference(run: Run, web: FastAPI) -> None:
    for model, scores in (("small", "up down down"), ("large", "up up")):
        chat = store_completion(web, model=model)
        for n, score in enumerate(scores.split()):
            output(run("add", chat, score, "--user", f"{n}"))

    assert "33.3 %" in output(run("summary"))
    compared = output(run("summary", "--model", "large", "--baseline", "small"))
    assert "large less small: +66.7 points, 95 % interval" in compared
    assert json.loads(output(run("summary", "--model", "large", "--json")))["data"][0]["count"] == 2
    assert "large" not in output(run("summary", "--since", "4000000000"))


def test_line_of_batch_is_named_by_custom_id(run: Run) -> None:
    result = run("add", "batch_x", "up", "--item", "ticket-7")

    assert result.exit_code == 1
    assert "No batch found with id 'batch_x'" in str(result.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("file-x", "up"), "give the id of a response"),
        (("resp_x", "great"), "a score is `up`"),
        (("resp_x", "up", "--item", "a"), "--item names a line"),
        (("batch_x", "up"), "--item names a line"),
        (("resp_x", "7"), "Expected a value <= 1"),
    ],
)
def test_wrong_input_prints_a_single_line(run: Run, words: tuple[str, ...], message: str) -> None:
    result = run("add", *words)

    assert result.exit_code == 1
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
