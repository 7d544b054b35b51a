"""Examples of what became of a batch's lines: which are chosen, and that no more is read than it takes."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from jobs.batches import outcome_examples
from jobs.batches.outcome_examples import Failure
from workers.engines.port import Answer
from workers.runtime.outcomes import outcomes_of


def chat(reason: str | None, **message: Any) -> dict[str, Any]:
    return {"choices": [{"finish_reason": reason, "message": {"role": "assistant", **message}}]}


def line(custom_id: str, body: Any, status: int = 200) -> bytes:
    response = {"status_code": status, "body": body}
    return json.dumps({"custom_id": custom_id, "response": response, "error": None}).encode()


class Lines:
    """The lines of a file; `read` counts those that were read."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        self._lines = lines
        self.read = 0

    def __iter__(self) -> Iterator[bytes]:
        for text in self._lines:
            self.read += 1
            yield text


def test_examples_per_outcome_are_limited_and_remaining_lines_unread() -> None:
    many = [line(f"cut{n}", chat("length", content="so")) for n in range(5)]
    lines = Lines([line("a", chat("stop", content="yes")), *many, line("e", chat("stop", content="")), *many])

    shown = outcome_examples.answer_examples(lines, {"length": 10, "empty": 1})

    assert shown == {"length": [f"cut{n}: so" for n in range(3)], "empty": ["e"]}
    assert lines.read == 7


def test_failures_are_single_line_and_reading_stops_once_all_are_known() -> None:
    refused = line("r", {"error": {"code": "too_long", "message": "Too\nlong."}}, 400)
    lines = Lines([refused, line("a", chat("stop", content="yes")), refused])

    assert outcome_examples.failure_examples(lines, {"too_long": 1}) == {
        "too_long": Failure(["r: Too long."], is_permanent=True)
    }
    assert lines.read == 1


@pytest.mark.parametrize(
    ("status", "is_permanent"),
    [(400, True), (404, True), (408, False), (409, False), (429, False), (500, False), (503, False), (None, False)],
)
def test_failure_is_permanent_only_for_status_of_invalid_request(status: int | None, is_permanent: bool) -> None:
    body = {"error": {"code": "no", "message": "No."}}
    unanswered = json.dumps({"custom_id": "r", "response": None, "error": body["error"]}).encode()
    lines = [line("r", body, status) if status else unanswered]

    assert outcome_examples.failure_examples(lines, {"no": 1})["no"] == Failure(["r: No."], is_permanent)


@pytest.mark.parametrize(
    "odd",
    [
        b"[" * 100_000,
        b"no JSON",
        b"[]",
        b"{}",
        line("a", {"choices": [1]}),
        line("a", {"choices": [{"finish_reason": [1], "message": {"content": "x"}}]}),
        line("a", {"choices": [{"finish_reason": "length", "message": "x"}]}),
    ],
)
def test_a_line_of_an_unknown_shape_is_no_example(odd: bytes) -> None:
    good = line("b", chat("length", content="so"))

    assert outcome_examples.answer_examples([odd, good], {"length": 2}) == {"length": ["b: so"]}
    assert outcome_examples.failure_examples([odd], {"no": 1}) == {"no": Failure([], is_permanent=False)}


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
def test_outcomes_are_those_that_the_workers_count(body: dict[str, Any]) -> None:
    counted = outcomes_of("/v1/chat/completions", Answer(200, json.dumps(body).encode()))

    assert outcome_examples.outcomes_of(json.loads(line("a", body))) == set(counted)
