"""Answers beside their inputs, as JSON lines, CSV and Parquet; and what a sample says of the whole."""

import base64
import csv
import io
import json
import struct
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from cli.commands.results import write_csv, write_jsonl, write_parquet
from cli.commands.submit import extrapolate, write_sample
from cli.errors import CliError
from cli.main import app
from jobs.batches.exports import VECTOR_KINDS
from jobs.batches.joining import COLUMNS, Unjoinable, join_rows

CHAT, TEXT, RESPONSES, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"
HELLO = {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]}


def asked(custom_id: str, url: str = CHAT, **body: Any) -> bytes:
    request = {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m", **(body or HELLO)}}
    return json.dumps(request).encode() + b"\n"


def answered(custom_id: str, body: dict[str, Any], status: int = 200) -> bytes:
    response = {"status_code": status, "request_id": "req", "body": body}
    return json.dumps({"id": "x", "custom_id": custom_id, "response": response, "error": None}).encode()


def unanswered(custom_id: str, code: str) -> bytes:
    error = {"code": code, "message": "No."}
    return json.dumps({"id": "x", "custom_id": custom_id, "response": None, "error": error}).encode()


def chat(text: str | None) -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}


def one(url: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    [row] = join_rows([asked("a", url, **body)], [answered("a", answer)], [])
    return row


def test_results_are_joined_with_inputs_in_input_order() -> None:
    inputs = [b"\xef\xbb\xbf" + asked("a"), b"\r\n", asked("b"), asked("c"), asked("d")]
    outputs = [answered("a", chat("one")), answered("d", chat("four"))]
    refused = answered("c", {"error": {"message": "Too long.", "code": "context_length_exceeded"}}, 400)

    rows = list(join_rows(inputs, outputs, [unanswered("b", "batch_expired"), refused]))

    assert [row["custom_id"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["answer"] for row in rows] == ["one", None, None, "four"]
    assert [row["error_code"] for row in rows] == [None, "batch_expired", "context_length_exceeded", None]
    assert [row["status_code"] for row in rows] == [200, None, 400, 200]
    assert (rows[0]["prompt"], rows[0]["finish_reason"], rows[0]["input_tokens"]) == ("hello", "stop", 3)
    assert tuple(rows[0]) == COLUMNS


def test_retry_row_shows_overridden_request() -> None:
    overrides = {"model": "other", "messages": [{"role": "user", "content": "again"}]}

    [row] = join_rows([asked("a")], [answered("a", chat("one"))], [], overrides)

    assert row["request"] == overrides
    assert row["prompt"] == "again"


class Served:
    """A server with one job. It answers with `rows` and notes the routes that were fetched."""

    def __init__(self, job: dict[str, Any], rows: Sequence[dict[str, Any]] = ()) -> None:
        self._job, self._rows = job, rows
        self.fetched: list[str] = []

    def get(self, _path: str) -> dict[str, Any]:
        return self._job

    def fetch(self, route: str, path: Path) -> None:
        self.fetched.append(route)
        path.write_text("".join(json.dumps(row) + "\n" for row in self._rows))


ENDED = {
    "id": "batch_1", "kind": "generation", "state": "succeeded", "created_at": 0, "endpoint": CHAT,
    "progress": {"total": 1, "completed": 1, "failed": 0}, "usage": {"input_tokens": 0, "output_tokens": 0},
    "overrides": {}, "input_file_id": "file-in", "output_file_id": "file-out",
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "query"),
    [
        (("--join",), "join=true"),
        (("--format", "csv"), "join=true"),
        (("--state", "failed", "--code", "too_long"), "join=true&state=failed&code=too_long"),
        (("--custom-id", "a b"), "join=true&custom_id=a+b"),
    ],
)
def test_the_command_writes_the_rows_that_the_server_selects(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], query: str
) -> None:
    server = Served(ENDED, rows())
    monkeypatch.setattr("cli.commands.results.connect", lambda *_: nullcontext(server))

    done = CliRunner().invoke(app, ["results", "batch_1", *options])

    assert (done.exit_code, done.stderr) == (0, "2 results\n")
    assert server.fetched == [f"/jobs/batch_1/results?{query}"]
    if "csv" not in options:
        assert [json.loads(line) for line in done.stdout.split("\n")[:-1]] == rows()


def test_the_command_shows_the_table_that_was_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {**rows()[0], "row": {"country": "Peru"}, "answer": "Lima"}
    monkeypatch.setattr("cli.commands.results.connect", lambda *_: nullcontext(Served(ENDED, [row])))

    csv_, lines = (
        CliRunner().invoke(app, ["results", "batch_1", "--table", *more]) for more in (["--format", "csv"], [])
    )

    assert list(csv.reader(io.StringIO(csv_.stdout))) == [["country", "answer", "error"], ["Peru", "Lima", ""]]
    assert json.loads(lines.stdout) == {"country": "Peru", "answer": "Lima", "error": None}


@pytest.mark.parametrize("options", [(), ("--join",)])
def test_a_job_that_failed_before_it_ran_shows_its_errors(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    faults = [{"line": 2, "message": "Wrong.", "param": "url"}, {"line": None, "message": "Bad.", "param": None}]
    job = {
        "id": "batch_1", "kind": "generation", "state": "failed", "created_at": 0, "endpoint": CHAT,
        "progress": {"total": 0, "completed": 0, "failed": 0}, "usage": {"input_tokens": 0, "output_tokens": 0},
        "overrides": {}, "input_file_id": "file-in", "errors": {"data": faults},
    }  # fmt: skip
    monkeypatch.setattr("cli.commands.results.connect", lambda *_: nullcontext(Served(job)))

    done = CliRunner().invoke(app, ["results", "batch_1", *options])

    assert (done.exit_code, done.stdout) == (1, "")
    assert str(done.exception) == "batch_1 failed and has no results\nline 2: Wrong. (url)\nBad."


def test_lines_that_the_planner_takes_are_joined_too() -> None:
    digits = "7" * 5000
    huge = b'{"custom_id": "a", "method": "POST", "url": "%s", "body": {"model": "m", "x": %s, "messages": []}}'
    inputs = [b"\xef\xbb\xbf\r\n", huge % (CHAT.encode(), digits.encode())]

    [row] = join_rows(inputs, [answered("a", chat("one"))], [])

    assert (row["answer"], row["request"]["x"]) == ("one", digits)


@pytest.mark.parametrize(
    ("url", "answer"),
    [
        (CHAT, {"choices": "none", "usage": 3}),
        (CHAT, {"choices": ["text"], "usage": {"prompt_tokens": "3"}}),
        (EMBED, {"data": [{"embedding": 1}]}),
        (EMBED, {"data": [{}], "incomplete_details": "x"}),
        (RESPONSES, {"output": ["x"], "usage": []}),
    ],
)
def test_an_answer_of_a_shape_of_its_own_stands_whole_in_its_row(
    tmp_path: Path, url: str, answer: dict[str, Any]
) -> None:
    row = one(url, {"input": ["x", {"text": 1}, 5]}, answer)

    assert (row["answer"], row["input_tokens"], row["response"]) == (None, None, answer)
    assert write_parquet([row], tmp_path / "out.parquet") == 1


def test_unreadable_result_raises_error() -> None:
    deep = answered("a", {}).replace(b'"body": {}', b'"body": ' + b"[" * 100_000 + b"]" * 100_000)

    with pytest.raises(Unjoinable, match=r'cannot be read.*"custom_id": "a"'):
        list(join_rows([asked("a")], [deep], []))


def test_inputs_without_a_result_are_passed_by() -> None:
    rows = join_rows([asked("a"), asked("b")], [answered("b", chat("two"))], [])

    assert [row["custom_id"] for row in rows] == ["b"]


def test_result_without_input_raises_error() -> None:
    with pytest.raises(Unjoinable, match="'z' has no line"):
        list(join_rows([asked("a")], [answered("z", chat("?"))], []))


@pytest.mark.parametrize(
    ("url", "body", "answer", "expected"),
    [
        (TEXT, {"prompt": "1"}, {"choices": [{"text": "2", "finish_reason": "length"}]}, ("1", "2", "length")),
        (
            RESPONSES,
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]},
            {"status": "completed", "output": [{}, {"content": [{"type": "output_text", "text": "yo"}]}]},
            ("hi", "yo", "completed"),
        ),
        (EMBED, {"input": "cat"}, {"data": [{"embedding": [0.5, 1.0]}]}, ("cat", [0.5, 1.0], None)),
        (
            EMBED,
            {"input": "cat"},
            {"data": [{"embedding": base64.b64encode(struct.pack("<2f", 0.5, 1.0)).decode()}]},
            ("cat", [0.5, 1.0], None),
        ),
        (EMBED, {"input": ["a", "b"]}, {"data": [{"embedding": [1.0]}] * 2}, ('["a", "b"]', None, None)),
        (
            "/v1/rerank",
            {"query": "cat", "documents": ["a", "b"]},
            {"results": [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.25}]},
            ("cat", "[[1, 0.5], [0, 0.25]]", None),
        ),
        (CHAT, HELLO, {"choices": []}, ("hello", None, None)),
        (CHAT, {"prompt": {"id": "pmpt_1"}}, {"choices": []}, ('{"id": "pmpt_1"}', None, None)),
    ],
)  # fmt: skip
def test_every_endpoint_has_a_prompt_and_an_answer(
    url: str, body: dict[str, Any], answer: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    row = one(url, body, answer)

    assert (row["prompt"], row["answer"], row["finish_reason"]) == expected


def copied(custom_id: str, original: str, body: dict[str, Any], status: int = 200) -> bytes:
    return json.dumps({**json.loads(answered(custom_id, body, status)), "duplicate_of": original}).encode()


def deduped() -> list[dict[str, Any]]:
    """Of three lines two are computed: one is a copy."""
    outputs = [answered("a", chat("")), copied("b", "a", chat("")), answered("c", chat("x"))]
    return list(join_rows([asked("a"), asked("b"), asked("c")], outputs, []))


@pytest.mark.parametrize(
    ("url", "usage"),
    [(CHAT, {"prompt_tokens": 3, "completion_tokens": 2}), (RESPONSES, {"input_tokens": 3, "output_tokens": 2})],
)
def test_a_copy_names_its_original_and_costs_nothing(url: str, usage: dict[str, int]) -> None:
    inputs = [asked("a", url), asked("b", url)]

    one, other = join_rows(inputs, [answered("a", {"usage": usage}), copied("b", "a", {"usage": usage})], [])

    told = [(row["duplicate_of"], row["input_tokens"], row["output_tokens"]) for row in (one, other)]
    assert told == [(None, 3, 2), ("a", None, None)]
    assert other["response"] == {"usage": usage}, "as it was answered"


def test_the_copy_of_a_refusal_names_its_original_too() -> None:
    refused = {"error": {"message": "Too long.", "code": "too_long"}}

    [_, row] = join_rows([asked("a"), asked("b")], [], [answered("a", refused, 400), copied("b", "a", refused, 400)])

    assert (row["duplicate_of"], row["error_code"]) == ("a", "too_long")


def test_in_json_lines_and_parquet_a_copy_has_null_tokens_and_an_empty_answer_is_text(tmp_path: Path) -> None:
    names = ("answer", "duplicate_of", "input_tokens", "output_tokens")

    write_jsonl(deduped(), tmp_path / "out.jsonl")
    write_parquet(deduped(), tmp_path / "out.parquet")

    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    for read in (lines, table):
        told = [tuple(row[name] for name in names) for row in read]
        assert told == [("", None, 3, 2), ("", "a", None, None), ("x", None, 3, 2)]


def test_in_csv_the_tokens_of_a_copy_are_empty_cells(tmp_path: Path) -> None:
    write_csv(deduped(), tmp_path / "out.csv")

    read = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(), newline="")))
    assert [(row["duplicate_of"], row["input_tokens"]) for row in read] == [("", "3"), ("a", ""), ("", "3")]


def rows() -> list[dict[str, Any]]:
    text = 'a, "b"\nc\u2028d'
    inputs = [asked("a"), asked("b")]
    return list(join_rows(inputs, [answered("a", chat(text))], [unanswered("b", "batch_expired")]))


def test_csv_keeps_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    assert write_csv(rows(), tmp_path / "out.csv") == 2

    read = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(), newline="")))
    assert tuple(read[0]) == COLUMNS
    assert read[0]["answer"] == 'a, "b"\nc\u2028d'
    assert json.loads(read[0]["request"])["model"] == "m"
    assert (read[1]["error_code"], read[1]["response"]) == ("batch_expired", "")


def test_json_lines_go_to_standard_output_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert write_jsonl(rows(), None) == 2

    assert [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]] == rows()


def test_parquet_has_typed_columns(tmp_path: Path) -> None:
    assert write_parquet(rows(), tmp_path / "out.parquet") == 2

    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == list(COLUMNS)
    assert table["input_tokens"].to_pylist() == [3, None]
    assert table["answer"].to_pylist()[1] is None
    assert list(tmp_path.iterdir()) == [tmp_path / "out.parquet"]


def test_parquet_takes_an_answer_and_a_message_that_are_no_text(tmp_path: Path) -> None:
    parts: Any = [{"type": "text", "text": "hi"}]
    inputs = [asked("a"), asked("b", TEXT, prompt="1"), asked("c")]
    outputs = [answered("a", chat(parts)), answered("b", {"choices": [{"text": {"x": 1}}]})]
    refused = answered("c", {"error": {"message": [{"msg": "no"}]}}, 422)

    assert write_parquet(join_rows(inputs, outputs, [refused]), tmp_path / "out.parquet") == 3

    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["answer"].to_pylist() == [json.dumps(parts), '{"x": 1}', None]
    assert table["error_message"].to_pylist() == [None, None, '[{"msg": "no"}]']


def test_embeddings_are_vectors_in_parquet_also_behind_many_failures(tmp_path: Path) -> None:
    inputs = [asked(str(n), EMBED, input="cat") for n in range(2500)]
    outputs = [answered(str(n), {"data": [{"embedding": [0.5, 1.0]}]}) for n in range(1500, 2500)]
    errors = [unanswered(str(n), "batch_expired") for n in range(1500)]

    write_parquet(join_rows(inputs, outputs, errors), tmp_path / "out.parquet", VECTOR_KINDS)

    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["answer"].to_pylist()[1499:1501] == [None, [0.5, 1.0]]
    assert str(table.schema.field("answer").type) == "list<element: float>"


def test_an_empty_parquet_file_has_its_columns(tmp_path: Path) -> None:
    assert write_parquet([], tmp_path / "out.parquet") == 0
    assert parquet.read_table(tmp_path / "out.parquet").column_names == list(COLUMNS)


def test_parquet_needs_a_place() -> None:
    with pytest.raises(CliError, match="--output"):
        write_parquet([], None)


@pytest.mark.parametrize(("count", "expected"), [(3, [0, 3, 6]), (10, list(range(10))), (99, list(range(10)))])
def test_a_sample_is_spread_over_the_file(tmp_path: Path, count: int, expected: list[int]) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "some.jsonl"
    source.write_bytes(b"\n".join(b'{"n": %d}' % n for n in range(10)) + b"\n\n")

    assert write_sample(source, count, target) == 10
    assert [json.loads(line)["n"] for line in target.read_bytes().splitlines()] == expected


def test_sample_usage_is_extrapolated_to_all_requests() -> None:
    job = {
        "usage": {"input_tokens": 30, "output_tokens": 20},
        "progress": {"completed": 9, "failed": 1},
        "created_at": 104,
        "in_progress_at": 105,
        "finalizing_at": 110,
        "worked_seconds": 5.0,
    }

    told = extrapolate(job, 1000)

    assert "all 1,000 requests, going by these 10: about 3,000 tokens in, 2,000 out, 100 of them failed" in told
    assert told.endswith("8 min 20 s at the sample's pace, less where the engine takes more at once")


def test_extrapolation_reports_reasoning_tokens() -> None:
    usage = {"input_tokens": 30, "output_tokens": 200, "output_tokens_details": {"reasoning_tokens": 150}}
    job = {"usage": usage, "progress": {"completed": 10, "failed": 0}, "worked_seconds": None}

    assert extrapolate(job, 100).endswith("about 300 tokens in, 2,000 out (1,500 of them reasoning)")


def test_extrapolation_reports_cold_start_separately() -> None:
    job = {
        "usage": {"input_tokens": 30, "output_tokens": 20},
        "progress": {"completed": 10, "failed": 0},
        "created_at": 100,
        "in_progress_at": 101,
        "finalizing_at": 192,
        "worked_seconds": 2.5,
    }

    told = extrapolate(job, 1000)

    assert "; 4 min 10 s at the sample's pace" in told
    assert "; before that it waited 1 min 30 s for its turn and its model, which comes once" in told


def test_extrapolation_without_worked_seconds_states_no_time() -> None:
    job = {
        "usage": {"input_tokens": 30, "output_tokens": 20},
        "progress": {"completed": 10, "failed": 0},
        "worked_seconds": None,
    }

    assert extrapolate(job, 20) == "all 20 requests, going by these 10: about 60 tokens in, 40 out"
