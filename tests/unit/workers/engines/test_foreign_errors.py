"""Errors of foreign code: which are caught, and which pass."""

import asyncio

import pytest

from workers.engines.foreign_errors import ForeignCall, translate_errors


class Translated(Exception):
    pass


def test_an_error_is_kept_and_nothing_is_raised() -> None:
    with ForeignCall() as call:
        raise ValueError("broken")
    with ForeignCall() as sound:
        pass

    assert (str(call.error), sound.error) == ("broken", None)


def test_an_error_is_translated_and_names_its_cause() -> None:
    with (
        pytest.raises(Translated, match="broken") as translated,
        translate_errors(lambda error: Translated(str(error))),
    ):
        raise ValueError("broken")

    assert isinstance(translated.value.__cause__, ValueError)


@pytest.mark.parametrize("error", [KeyError, asyncio.CancelledError, KeyboardInterrupt])
def test_passed_classes_and_what_ends_a_task_or_the_process_are_not_caught(error: type[BaseException]) -> None:
    with pytest.raises(error), ForeignCall(KeyError):
        raise error
    with pytest.raises(error), translate_errors(lambda _: Translated(), KeyError):
        raise error
