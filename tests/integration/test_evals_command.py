"""`nightmill evals` against workers over a fake engine: what it sends, what it shows, and its exit codes."""

import csv
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from jobs.db.engine import Database
from tests.support.eval_client import SAME, World, echo, evaluating
from tests.support.inline_deployment import MODEL

PROMPT = "{{ item.question }}"


@contextmanager
def working(world: World) -> Iterator[None]:
    """Have the dispatcher work beside the command."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.01):
            world.inline.dispatcher.tick()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path) as world:
        yield world


def call(world: World, *words: str) -> Result:
    where = ["--url", str(world.client.base_url).removesuffix("/v1/"), "--api-key", world.client.api_key]
    with working(world):
        return CliRunner().invoke(app, ["evals", *words, *where])


def items_file(folder: Path, right: int, wrong: int) -> Path:
    file = folder / "items.jsonl"
    rows = [{"question": f"q{n}", "answer": echo(f"q{n}") if n < right else "no"} for n in range(right + wrong)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def evaluate(world: World, data: Path, *words: str) -> Result:
    grader = "same=eq:{{ item.answer }}"
    return call(world, "run", "--data", str(data), "--model", MODEL, "--prompt", PROMPT, "--grader", grader, *words)


def test_run_ends_with_the_share_that_passes(world: World, tmp_path: Path) -> None:
    data = items_file(tmp_path, right=3, wrong=1)

    enough = evaluate(world, data, "--fail-under", "same=0.75")
    too_little = evaluate(world, data, "--fail-under", "same=0.8")

    assert (enough.exit_code, too_little.exit_code) == (0, 1)
    assert "0.750" in enough.stdout
    assert "same: 0.750 of the items pass, less than 0.8" in str(too_little.exception)


@pytest.mark.verify
def test_items_of_a_table_and_an_eval_that_exists(world: World, tmp_path: Path) -> None:
    data, file = tmp_path / "items.csv", tmp_path / "eval.json"
    with data.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerows([["question", "answer"], ["a, b", echo("a, b")], ["c", "no"]])
    config = {"type": "custom", "item_schema": {}, "include_sample_schema": True}
    file.write_text(json.dumps({"data_source_config": config, "testing_criteria": [SAME]}))

    eval_id = call(world, "create", str(file)).stdout.strip()
    words = ("--data", str(data), "--model", MODEL, "--prompt", PROMPT, "--json")
    done = json.loads(call(world, "run", eval_id, *words).stdout)

    assert (done["eval_id"], done["result_counts"]["passed"], done["result_counts"]["failed"]) == (eval_id, 1, 1)
    listed = call(world, "list", "--json")
    assert [json.loads(line)["id"] for line in listed.stdout.splitlines()] == [done["id"]]
    assert call(world, "watch", done["id"]).exit_code == 0


def test_two_runs_are_compared(world: World, tmp_path: Path) -> None:
    worse, better = (items_file(tmp_path, right=right, wrong=0) for right in (4, 4))
    first = json.loads(evaluate(world, worse, "--json").stdout)
    other_prompt = ("--prompt", "{{ item.question }}?", "--json")
    second = json.loads(evaluate(world, better, *other_prompt).stdout)
    report = tmp_path / "report.html"

    table = call(world, "compare", first["id"], second["id"], "--report", str(report))
    rows = call(world, "compare", first["id"], second["id"], "--slice-by", "item.question", "--json")

    assert table.exit_code == 0, table.output
    assert "-1.000" in table.stdout
    compared: list[dict[str, Any]] = [json.loads(line) for line in rows.stdout.splitlines()]
    assert [(row["criterion"], row["slice"], row["items"]) for row in compared[:2]] == [
        ("all criteria", None, 4),
        ("same", None, 4),
    ]
    assert (compared[1]["worse"], compared[1]["better"], compared[1]["p_value"]) == (4, 0, pytest.approx(0.125))
    assert (compared[1]["verdict"], compared[1]["items_needed"]) == ("inconclusive", 16)
    assert "inconclusive, about 16 more" in table.stdout
    assert {row["slice"] for row in compared[2:-2]} == {"q0", "q1", "q2", "q3"}
    assert [(row["run"], row["gap"]) for row in compared[-2:]] == [("first", 0.0), ("second", 0.0)]
    text = report.read_text()
    assert first["id"] in text
    assert "://" not in text
    assert text.count('<div class="pair">') == 4


def test_comparison_exit_code_follows_fail_on_option(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    data, few = items_file(tmp_path, right=20, wrong=0), items_file(folder, right=4, wrong=0)
    words = ("--prompt", "{{ item.question }}?", "--json")
    good, bad = (json.loads(evaluate(world, data, *more).stdout)["id"] for more in (("--json",), words))
    ones, others = (json.loads(evaluate(world, few, *more).stdout)["id"] for more in (("--json",), words))

    def compare(*words: str) -> tuple[int, str]:
        ended = call(world, "compare", *words)
        return ended.exit_code, str(ended.exception or "")

    worse = "all criteria: worse; same: worse"
    assert compare(good, bad) == (0, "")
    assert compare(good, bad, "--fail-on", "worse") == (1, worse)
    assert compare(good, bad, "--fail-on", "inconclusive") == (1, worse)
    assert compare(bad, good, "--fail-on", "inconclusive") == (0, "")
    assert compare(ones, others, "--fail-on", "worse") == (0, "")
    assert compare(ones, others, "--fail-on", "inconclusive")[0] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grader", "nothing"], "it is NAME=KIND:REFERENCE"),
        (["--grader", "same=eq:x", "--fail-under", "other=1"], "no grader has that name"),
        (["--grader", "same=eq:x", "--fail-under", "same=much"], "'much' is no number"),
        ([], "name the graders with --grader"),
        (["eval_1", "--grader", "same=eq:x"], "name the graders with --grader"),
        (["--grader", "same=eq:x", "--fail-if-worse"], "--baseline"),
        (["--grader", "same=eq:x", "--baseline", "x", "--junit", "absent/report.xml"], "there is no such folder"),
    ],
)
def test_wrong_options_create_nothing(world: World, tmp_path: Path, words: list[str], message: str) -> None:
    data = items_file(tmp_path, right=1, wrong=0)

    done = call(world, "run", "--data", str(data), "--model", MODEL, "--prompt", PROMPT, *words)

    assert done.exit_code == 1
    assert message in str(done.exception)
    assert list(world.client.evals.list()) == []
    assert list(world.client.files.list()) == []


@pytest.mark.verify
def test_line_that_is_no_object_is_named(world: World, tmp_path: Path) -> None:
    data = tmp_path / "items.jsonl"
    data.write_text('{"a": 1}\n[]\n')

    done = call(world, "run", "--data", str(data), "--grader", "same=eq:x")

    assert "line 2 is no JSON object" in str(done.exception)
    assert list(world.client.evals.list()) == []
