"""Examples of what became of a job's lines: which are found, and that no more is read than it takes."""

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
from typer.main import get_command

from cli.client.progress import Snapshot
from cli.client.server import Server
from cli.commands import explain
from cli.commands.explain import _answered, _failed
from cli.errors import CliError
from cli.main import app
from workers.engines.port import Answer
from workers.runtime.outcomes import outcomes_of


def chat(reason: str | None, **message: Any) -> dict[str, Any]:
    return {"choices": [{"finish_reason": reason, "message": {"role": "assistant", **message}}]}


def line(custom_id: str, body: Any, status: int = 200) -> bytes:
    return json.dumps(
        {"custom_id": custom_id, "response": {"status_code": status, "body": body}, "error": None}
    ).encode()


class Files:
    """A server with these files; it counts the lines that are read of them."""

    def __init__(self, files: Mapping[str, list[bytes]]) -> None:
        self._files = files
        self.read = 0

    @contextmanager
    def content(self, file_id: str) -> Iterator[Iterator[bytes]]:
        if file_id not in self._files:
            raise CliError("No such File object")
        yield self._lines(file_id)

    @contextmanager
    def finished(self, _job_id: str) -> Iterator[Iterator[bytes]]:
        yield self._lines("finished")

    def _lines(self, name: str) -> Iterator[bytes]:
        for one in self._files[name]:
            self.read += 1
            yield one


def job(outcomes: Mapping[str, Any], output: str | None = "out") -> Snapshot:
    shown = {
        "id": "batch_1", "kind": "generation", "state": "succeeded", "created_at": 0, "output_file_id": output,
        "progress": {"total": 9, "completed": 9, "failed": 0}, "usage": {"input_tokens": 0, "output_tokens": 0},
        "outcomes": outcomes,
    }  # fmt: skip
    return Snapshot.of(shown)


def told(files: Files, snapshot: Snapshot) -> list[str]:
    return list(_answered(cast("Server", files), snapshot))


def test_cut_and_empty_answers_are_shown_by_a_few_of_their_lines() -> None:
    many = [line(f"cut{n}", chat("length", content="so")) for n in range(5)]
    files = Files({"out": [line("a", chat("stop", content="yes")), *many, line("e", chat("stop", content="")), *many]})
    outcomes = {"finish_reasons": {"stop": 2, "length": 10}, "empty": 1}

    said = told(files, job(outcomes))

    assert said[:6] == [
        "  answers ended by length (10), stop (2)",
        *(f"      length: cut{n}: so" for n in range(3)),
        "  1 of the answers are empty",
        "      e",
    ]
    assert files.read == 7, "the rest of the file is not asked for"


@pytest.mark.parametrize(
    ("endpoint", "limit"),
    [
        ("/v1/chat/completions", "max_completion_tokens"),
        ("/v1/completions", "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
    ],
)
def test_cut_answers_are_advised_to_be_run_again_with_a_command_that_exists(endpoint: str, limit: str) -> None:
    cut = replace(job({"finish_reasons": {"length": 1}, "empty": 0}), endpoint=endpoint)

    advice = told(Files({}), cut)[-1]

    program, name, *words = shlex.split(advice)
    group: Any = get_command(app)
    given = group.commands[name].make_context(name, words).params
    assert (program, given["job"], given["which"]) == ("nightmill", "batch_1", "length")
    assert json.loads(given["override"]) == {limit: 4096}


def test_answers_that_ended_by_themselves_are_not_read_at_all() -> None:
    files = Files({"out": [line("a", chat("stop", content="yes"))]})

    assert told(files, job({"finish_reasons": {"stop": 1}, "empty": 0})) == ["  answers ended by stop (1)"]
    assert files.read == 0


def test_of_a_job_that_runs_what_is_finished_is_read() -> None:
    files = Files(
        {"finished": [line("a", {"error": {"code": "no"}}, 400), line("t", chat("tool_calls", tool_calls=[1]))]}
    )

    assert "      tool_calls: t" in told(files, job({"finish_reasons": {"tool_calls": 1}, "empty": 0}, output=None))


def test_without_the_file_the_counts_stand_alone() -> None:
    assert told(Files({}), job({"finish_reasons": {"length": 1}, "empty": 0}))[0] == "  answers ended by length (1)"


def test_a_failure_whose_lines_are_few_ends_the_reading() -> None:
    refused = line("r", {"error": {"code": "too_long", "message": "Too\nlong."}}, 400)
    files = Files({"finished": [refused, line("a", chat("stop", content="yes")), refused]})

    said = list(_failed(cast("Server", files), job({"errors": {"too_long": 1}})))

    assert said[:2] == ["  1 x too_long", "      r: Too long."]
    assert files.read == 1


RESPONSE = {"status": "completed", "output": [{"type": "message", "content": [{"text": "yes"}]}]}


@pytest.mark.parametrize(
    "body",
    [
        chat("stop", content="yes"),
        chat("length", content=" \n"),
        chat("tool_calls", content=None, tool_calls=[{"id": "1"}]),
        chat("stop", content=None, refusal="no"),
        chat(None, content="yes"),
        {"choices": []},
        {"choices": "odd"},
        {},
        {"choices": [{"text": "on", "finish_reason": "length"}, {"text": "", "finish_reason": "stop"}]},
        RESPONSE,
        {"status": "completed", "output": [{"type": "reasoning", "content": None}]},
        {"status": "completed", "output": [{"type": "function_call"}]},
        {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": []},
    ],
)
def test_lines_are_told_apart_as_the_workers_count_them(body: dict[str, Any]) -> None:
    counted = outcomes_of("/v1/chat/completions", Answer(200, json.dumps(body).encode()))

    assert explain.outcomes_of(json.loads(line("a", body))) == set(counted)


def test_a_job_whose_model_loads_says_so_and_is_not_held_up_by_anything_else() -> None:
    status = {"status": "loading", "model": "tiny", "phase": "importing vLLM", "since": 0}
    waiting = replace(job({}, None), state="running", model_status=status)

    first, second = explain._standing(waiting)

    assert first.startswith("batch_1 (generation, no model yet): running, loading tiny (importing vLLM), ")
    assert (
        second == "  it waits: its model answers when it is loaded; `nightmill workers` shows the worker that loads it"
    )
    assert list(explain._held_up("http://127.0.0.1:9", waiting, None)) == []
