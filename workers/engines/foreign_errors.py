"""Catch what foreign code raises: models, tokenizers, chat templates, exporters and vLLM raise any error.

An engine calls such code inside one of these two, which have the only broad `except` of the engines, but for two:

    with translate_errors(make):       an error becomes the engine's own
    with ForeignCall() as call:        an error is kept in `call.error`, and the engine goes on

`SwappedEngine` closes an engine after a cancellation too, and the trainer's process lets errors that another try may
not meet end it: both handle the error where it is raised.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType


@contextmanager
def translate_errors(make: Callable[[Exception], Exception], *passed: type[Exception]) -> Iterator[None]:
    """Raise what `make` returns for an error, unless it is one of the `passed` classes."""
    try:
        yield
    except passed:
        raise
    except Exception as error:
        raise make(error) from error


class ForeignCall:
    """Keep the error of the body in `error`, unless it is one of the `passed` classes."""

    def __init__(self, *passed: type[Exception]) -> None:
        self._passed = passed
        self.error: Exception | None = None

    def __enter__(self) -> "ForeignCall":
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        if isinstance(error, Exception) and not isinstance(error, self._passed):
            self.error = error
        return self.error is not None
