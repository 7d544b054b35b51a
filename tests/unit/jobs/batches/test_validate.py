"""The dry run over a file: the same judgement as planning's, by the same limits."""

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from jobs.batches import validate
from jobs.batches.lines import MAX_LINE_BYTES
from jobs.batches.validate import DryRun, check

LINE = b'{"custom_id":"%d","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":["a","b"]}}\n'


def asked(folder: Path, data: bytes, **changes: Any) -> DryRun:
    (folder / "input").write_bytes(data)
    given = {
        "storage": f"file://{folder}",
        "path": "input",
        "endpoint": "/v1/embeddings",
        "project_id": "p",
        "max_lines": 100,
        "max_bytes": 1_000_000,
        "engines": {},
    }
    return DryRun(**given | changes)


def lines(count: int) -> bytes:
    return b"".join(LINE % n for n in range(count))


def test_a_good_file_is_counted(tmp_path: Path) -> None:
    found = check(asked(tmp_path, lines(3)))

    assert (found.total, found.inputs, found.model, found.first_line, found.errors) == (3, 6, "m", 1, [])
    assert found.bytes == len(lines(3))


@pytest.mark.parametrize(
    ("data", "changes", "codes"),
    [
        (lines(3), {"max_bytes": 10}, ["file_too_large"]),
        (lines(3), {"max_lines": 2}, ["too_many_requests", "too_many_inputs"]),
        (lines(3), {"max_lines": 5}, ["too_many_inputs"]),
        (lines(1) * 2, {}, ["duplicate_custom_id"]),
        (b"", {}, ["empty_file"]),
    ],
)
def test_each_exceeded_limit_is_reported(
    tmp_path: Path, data: bytes, changes: dict[str, int], codes: list[str]
) -> None:
    found = check(asked(tmp_path, data, **changes))

    assert [error["code"] for error in found.errors] == codes
    assert found.truncated is False


def test_too_long_line_is_reported(tmp_path: Path) -> None:
    found = check(asked(tmp_path, lines(1).strip().ljust(MAX_LINE_BYTES + 1), max_bytes=1 << 30))

    assert [error["code"] for error in found.errors] == ["line_too_long"]


def test_errors_are_in_the_order_of_the_lines(tmp_path: Path) -> None:
    found = check(asked(tmp_path, lines(1) * 2 + b"{\n" + lines(1)))

    assert [(error["line"], error["code"]) for error in found.errors] == [
        (2, "duplicate_custom_id"),
        (3, "invalid_json_line"),
        (4, "duplicate_custom_id"),
    ]


def _long(custom_id: str, url: str = "/v1/chat/completions", **body: Any) -> bytes:
    messages = [{"role": "user", "content": "Hi", **({"priority": body.pop("priority")} if "priority" in body else {})}]
    given = {"model": "m", "messages": messages, "input": messages, **body}
    given |= {"prompt": "Hi"} if url == "/v1/completions" else {}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": given}).encode() + b"\n"


def test_invalid_context_options_are_reported_per_line(tmp_path: Path) -> None:
    good = [{"strategy": "rotate"}, None, {"route_long": "other", "strategy": "priority"}]
    bad = [{"strategy": "forget"}, 5, {"strategy": "rotate", "keep_first": -1}]
    data = b"".join(_long(f"{n}", context=one) for n, one in enumerate([*good, *bad]))
    data += _long("odd", context={"strategy": "priority"}, priority="high") + _long("idle", priority="high")
    data += _long("hidden").replace(b'"model"', b'"\\u0063ontext": {}, "model"')

    found = check(asked(tmp_path, data, endpoint="/v1/chat/completions"))

    assert [(error["line"], error["param"], error["code"]) for error in found.errors] == [
        (4, "body.context.strategy", "invalid_value"),
        (5, "body.context", "invalid_value"),
        (6, "body.context.keep_first", "invalid_value"),
        (7, "body.messages", "invalid_type"),
        (9, "body.context.strategy", "missing_required_parameter"),
    ]
    assert found.total == 9


@pytest.mark.parametrize(
    ("endpoint", "param"),
    [("/v1/responses", "body.context.strategy"), ("/v1/completions", "body.context"), ("/v1/embeddings", None)],
)
def test_length_is_judged_where_there_is_something_to_be_done(tmp_path: Path, endpoint: str, param: str | None) -> None:
    data = _long("a", endpoint, context={"strategy": "forget"})

    found = check(asked(tmp_path, data, endpoint=endpoint))

    assert [error["param"] for error in found.errors] == ([param] if param else [])


def test_a_priority_is_judged_where_openais_own_truncation_would_read_it(tmp_path: Path) -> None:
    data = _long("a", "/v1/responses", truncation="auto", priority="high")
    data += _long("b", "/v1/responses", truncation="disabled", priority="high")

    found = check(asked(tmp_path, data, endpoint="/v1/responses"))

    assert [(error["line"], error["param"]) for error in found.errors] == [(1, "body.input")]


def test_a_response_that_needs_more_than_its_line_is_named(tmp_path: Path) -> None:
    url = "/v1/responses"
    data = _long("a", url, previous_response_id="resp_1") + _long("b", url, background=False, conversation=None)
    data += _long("c", url, conversation={"id": "conv_1"}) + _long("d", url, background=True, store=True)

    found = check(asked(tmp_path, data, endpoint=url))

    assert [(error["line"], error["param"], error["code"]) for error in found.errors] == [
        (1, "body.previous_response_id", "unsupported_parameter"),
        (3, "body.conversation", "unsupported_parameter"),
        (4, "body.background", "unsupported_parameter"),
    ]


def test_no_more_than_a_thousand_errors_are_named(tmp_path: Path) -> None:
    found = check(asked(tmp_path, b"nonsense\n" * 1500, max_lines=2000))

    assert len(found.errors) == 1000
    assert found.truncated is True


def test_the_process_speaks_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asdict(asked(tmp_path, lines(2))))))
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)

    validate.main()

    assert json.loads(out.getvalue())["total"] == 2
