"""What an engine says of a response is completed as OpenAI would tell it."""

from typing import Any

import pytest

from jobs.inference.responses import as_asked, text_of

TEXT = {"format": {"type": "text"}}


@pytest.mark.parametrize(
    ("asked", "most", "text"),
    [
        ({}, None, TEXT),
        ({"max_output_tokens": None, "text": None}, None, TEXT),
        ({"max_output_tokens": 9, "text": {"verbosity": "low"}}, 9, TEXT | {"verbosity": "low"}),
        ({"text": {"format": None}}, None, TEXT),
        ({"text": {"format": {"type": "json_object"}}}, None, {"format": {"type": "json_object"}}),
        ({"text": "odd"}, None, TEXT),
    ],
)
def test_it_says_what_was_asked_and_not_what_was_computed_with(
    asked: dict[str, Any], most: int | None, text: dict[str, Any]
) -> None:
    told = as_asked({"id": "resp_1", "status": "in_progress", "max_output_tokens": 4000, "text": None}, asked)

    assert told == {"id": "resp_1", "status": "in_progress", "max_output_tokens": most, "text": text, "error": None}
    assert text_of(asked) == text


@pytest.mark.parametrize(
    ("said", "ends"),
    [
        ({"status": "completed"}, True),
        ({"status": "completed", "completed_at": None}, True),
        ({"status": "incomplete"}, False),
        ({"status": "failed", "error": {"code": "server_error"}}, False),
    ],
)
def test_the_time_of_its_end_is_told_of_what_is_completed(said: dict[str, Any], ends: bool) -> None:
    once = as_asked(said, {})

    assert isinstance(once.get("completed_at"), int) is ends
    assert as_asked(once, {}) == once
    assert once["error"] == said.get("error")


def test_a_time_that_is_known_stays() -> None:
    assert as_asked({"status": "completed", "completed_at": 5}, {})["completed_at"] == 5
