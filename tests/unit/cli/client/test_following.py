"""A watched job is shown as it goes on, and a restart of the server does not end the watching."""

import re
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from cli.client.progress import Snapshot, _line_printer, doubts, fault, follow
from cli.client.server import Server, ServerUnavailable
from jobs.clock import duration
from jobs.timings import Timings


def _job(state: str = "running", **changes: Any) -> dict[str, Any]:
    return {
        "id": "batch_1",
        "kind": "generation",
        "state": state,
        "created_at": 0,
        "progress": {"total": 10, "completed": 3, "failed": 1},
        "usage": {"input_tokens": 5, "output_tokens": 7},
        **changes,
    }


class Answers:
    """A server that gives these answers one after the other."""

    def __init__(self, *answers: dict[str, Any] | ServerUnavailable, patience: float = 120.0) -> None:
        self.timings = Timings(follow_look=0.0, follow_patience=patience)
        self._answers: Iterator[dict[str, Any] | ServerUnavailable] = iter(answers)

    def get(self, _path: str) -> dict[str, Any]:
        answer = next(self._answers)
        if isinstance(answer, ServerUnavailable):
            raise answer
        return answer


def _server(*answers: dict[str, Any] | ServerUnavailable, patience: float = 120.0) -> Server:
    return cast("Server", Answers(*answers, patience=patience))


def test_each_state_is_printed_once_until_job_ends(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = _job("queued", waiting_for="waiting_for_model")

    last = follow(_server(waiting, waiting, _job(), _job(), _job("succeeded")), "batch_1")

    assert last.has_ended
    assert capsys.readouterr().err.splitlines() == [
        "batch_1 queued, waiting for model: 4 of 10",
        "batch_1 running: 4 of 10",
        "batch_1 succeeded: 4 of 10",
    ]


def test_loading_model_is_printed_once_per_phase_with_elapsed_time(capsys: pytest.CaptureFixture[str]) -> None:
    status = {"status": "loading", "model": "tiny", "phase": "importing vLLM", "since": time.time() - 125}
    reading = status | {"phase": "reading the weights"}
    absent = {"status": "no_worker", "model": "tiny", "phase": None, "since": None}
    jobs = [_job(model_status=one) for one in (status, status, reading, absent)]

    follow(_server(*jobs, _job("succeeded")), "batch_1")

    told = re.sub(r"min \d+ s", "min _ s", capsys.readouterr().err)
    assert told.splitlines() == [
        "batch_1 running, loading tiny (importing vLLM), 2 min _ s so far: 4 of 10",
        "batch_1 running, loading tiny (reading the weights), 2 min _ s so far: 4 of 10",
        "batch_1 running, no live worker serves tiny: 4 of 10",
        "batch_1 succeeded: 4 of 10",
    ]


def test_a_server_that_comes_back_is_followed_on() -> None:
    away = ServerUnavailable("no server answers")

    assert follow(_server(_job(), away, away, _job("failed")), "batch_1").state == "failed"


def test_unavailable_server_raises_after_patience_ends() -> None:
    server = _server(_job(), ServerUnavailable("no server answers"), _job("failed"), patience=-1.0)

    with pytest.raises(ServerUnavailable):
        follow(server, "batch_1")


def test_pace_shows_known_rates_and_time_left() -> None:
    rate = {"items_per_second": 2.0, "tokens_per_second": 40.0}

    moving = Snapshot.of(_job(rate=rate, eta_seconds=90.0))

    assert moving.pace == "2.0 items/s, 40 tokens/s, 1 min 30 s left"
    assert Snapshot.of(_job(rate=None)).pace == ""


def test_progress_line_shows_requests_in_progress_and_elapsed_time(capsys: pytest.CaptureFixture[str]) -> None:
    at = 100.0
    show = _line_printer(lambda: at)
    still = {"total": 3, "completed": 0, "failed": 0, "running": 3}
    usage = {"input_tokens": 5, "output_tokens": 0}
    one = {"total": 3, "completed": 1, "failed": 0, "running": 2}
    rate = {"items_per_second": 0.1, "tokens_per_second": 2.0}
    for seconds, job in (
        (0, _job(progress=still, usage=usage)),
        (30, _job(progress=still, usage=usage)),
        (60, _job(progress=still, usage=usage)),
        (65, _job(progress=one, rate=rate)),
        (72, _job(progress=one, rate=rate)),
    ):
        at = 100.0 + seconds
        show(Snapshot.of(job))

    assert capsys.readouterr().err.splitlines() == [
        "batch_1 running: 0 of 3 (3 in progress)",
        "batch_1 running: 0 of 3 (3 in progress, 1 min 0 s so far)",
        "batch_1 running: 1 of 3 (2 in progress, 7 tokens out, 0.1 items/s, 2 tokens/s)",
    ]


def test_standing_shows_queue_position() -> None:
    assert Snapshot.of(_job("queued", queue_position=3)).standing == "queued, position 3"


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7260, "2 h 1 min")]
)
def test_durations_are_formatted_in_human_units(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_doubts_list_empty_truncated_and_failed_answers() -> None:
    outcomes = {"finish_reasons": {"stop": 7, "length": 2}, "empty": 1, "errors": {"context_length_exceeded": 3}}

    assert doubts(outcomes) == [
        "1 of the answers is empty",
        "2 were cut off at the token limit",
        "3 failed with context_length_exceeded",
    ]
    assert doubts({"finish_reasons": {"stop": 7}, "empty": 0, "errors": {}}) == doubts({}) == []


def test_a_fault_names_its_line_and_its_parameter() -> None:
    assert fault({"line": 3, "message": "Wrong.", "param": "body.model"}) == "line 3: Wrong. (body.model)"
    assert fault({"line": None, "message": "Wrong.", "param": None}) == "Wrong."
