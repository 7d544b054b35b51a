"""Commands say how a job has ended."""

from pathlib import Path
from typing import Any

import pytest

from cli.client.progress import Snapshot
from cli.client.server import Server
from cli.commands.jobs import fetch, tell


def _job(usage: dict[str, Any]) -> Snapshot:
    progress = {"total": 10, "completed": 9, "failed": 1}
    return Snapshot.of(
        {
            "id": "batch_1",
            "kind": "generation",
            "state": "succeeded",
            "created_at": 0,
            "progress": progress,
            "usage": usage,
        }
    )


@pytest.mark.parametrize(
    ("details", "told"),
    [
        ({}, "5 tokens in, 70 out"),
        ({"output_tokens_details": {"reasoning_tokens": 0}}, "5 tokens in, 70 out"),
        ({"output_tokens_details": {"reasoning_tokens": 60}}, "5 tokens in, 70 out, 60 of them reasoning"),
    ],
)
def test_summary_shows_tokens_and_reasoning_tokens(
    details: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(_job({"input_tokens": 5, "output_tokens": 70, **details}))

    assert capsys.readouterr().err == f"batch_1 succeeded: 9 completed, 1 failed of 10; {told}\n"


def test_stale_answers_of_earlier_job_are_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers, errors = tmp_path / "answers", tmp_path / "errors"
    answers.write_bytes(b"of yesterday")

    with Server("http://127.0.0.1:1", "key") as server:
        fetch(server, _job({"input_tokens": 0, "output_tokens": 0}), answers, errors)

    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == f"answers: none; removed what was in {answers}\n"
