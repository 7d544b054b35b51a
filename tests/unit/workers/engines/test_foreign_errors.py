"""Errors of foreign code: which are caught, and which pass."""

import asyncio

import pytest

from workers.engines.foreign_errors import ForeignCall, translate_errors


class Translated(Exception):
    pass


def test_error_is_stored_and_not_raised() -> None:
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
def test_excluded_errors_cancellation_and_interrupt_propagate(error: type[BaseException]) -> None:
    with pytest.raises(error), ForeignCall(KeyError):
        raise error
    with pytest.raises(error), translate_errors(lambda _: Translated(), KeyError):
        raise error
