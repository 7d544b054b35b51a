"""The graph of a job as trees, and a batch that waits for others, through the real API."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from cli.commands.graph import draw_graph
from cli.main import app as command
from tests.support import worker_steps
from tests.support.web import make_key, running_app, serve


def job(name: str, *after: str, state: str = "queued", waiting_for: str | None = None) -> dict[str, object]:
    return {"id": name, "kind": "generation", "state": state, "waiting_for": waiting_for, "after": list(after)}


def test_graph_draws_dependencies_and_dependents_as_trees() -> None:
    jobs = [
        job("a", state="succeeded"),
        job("b", "a", state="running"),
        job("c", "a", "b", waiting_for="waiting_for_job"),
        job("d", "c", waiting_for="waiting_for_job"),
        job("e", "c", "d", waiting_for="waiting_for_job"),
    ]

    lines = list(draw_graph({"job_id": "c", "jobs": jobs, "truncated": False}))

    assert lines == [
        "c (batch): queued, waiting for job",
        "  waits for",
        "    a (batch): succeeded",
        "    b (batch): running",
        "      a (batch): succeeded",
        "  is waited for by",
        "    d (batch): queued, waiting for job",
        "      e (batch): queued, waiting for job",
        "    e (batch): queued, waiting for job",
    ]


def test_repeated_subtree_is_drawn_once() -> None:
    jobs = [job("a"), job("b", "a"), job("c", "b"), job("d", "b", "c"), job("e", "c", "d")]

    lines = list(draw_graph({"job_id": "e", "jobs": jobs, "truncated": True}))

    assert lines == [
        "e (batch): queued",
        "  waits for",
        "    c (batch): queued",
        "      b (batch): queued",
        "        a (batch): queued",
        "    d (batch): queued",
        "      b (batch): queued (see above)",
        "      c (batch): queued (see above)",
        "  is waited for by: no job",
        "  and more, which are not shown",
    ]


def test_a_long_chain_is_drawn() -> None:
    jobs = [job("0"), *(job(str(n), str(n - 1)) for n in range(1, 3000))]

    assert len(list(draw_graph({"job_id": "2999", "jobs": jobs, "truncated": False}))) == 3002


@pytest.fixture
def app(tmp_path: Path, sqlite_url: str) -> Iterator[FastAPI]:
    with running_app(tmp_path, sqlite_url) as app:
        yield app


def test_a_batch_is_submitted_after_another_and_explained(app: FastAPI, tmp_path: Path) -> None:
    source = tmp_path / "lines.jsonl"
    source.write_text('{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m"}}\n')
    with serve(app) as url:
        server = ["--url", url, "--api-key", make_key(app)]

        def say(*words: str) -> str:
            done = CliRunner().invoke(command, [*words, *server])
            assert done.exit_code == 0, (done.output, done.exception)
            return done.stdout

        submit = ("submit", str(source), "--no-wait", "--no-check")
        first = say(*submit).strip()
        second = say(*submit, "--after", first).strip()

        assert f"      {first} (embedding): queued\n" in say("explain", second)
        assert f"  is waited for by\n    {second} (batch of embeddings): queued, waiting for job\n" in say(
            "graph", first
        )
        worker_steps.run(app.state.services.db, app.state.services.storage, first, 1)
        assert "waiting for job" not in say("graph", second)
