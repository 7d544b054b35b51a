"""vLLM's own logs without what a client or a model has said.

Its templates and its parsers log what they choke on: as an argument, as an error's words, as a traceback that quotes a
line of a model's answer. A worker's log is no place for that, nor is what a quarantine shows of it. What stands in
vLLM's code is left of such a record: the place, the message before anything is put into it, and the class of the error.

It holds in this process, where all of that happens; the engine's children have token ids only.
"""

import logging
import sys
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import Any, Final

QUOTING: Final = (
    "vllm.entrypoints.generate", "vllm.entrypoints.openai", "vllm.entrypoints.pooling", "vllm.entrypoints.serve",
    "vllm.multimodal", "vllm.parser", "vllm.reasoning", "vllm.renderers", "vllm.tokenizers", "vllm.tool_parsers",
    "vllm.v1.engine.detokenizer", "vllm.v1.structured_output",
)  # fmt: skip
WITHHELD: Final = "what is said here may quote a text"


class Discreet:
    """A factory of log records. It is no filter: those of a logger are not asked for the loggers below it."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(
        self, name: str, level: int, path: str, line: int, message: Any, args: Any, error: Any, *rest: Any, **more: Any
    ) -> logging.LogRecord:
        if str(name).startswith(QUOTING):
            said = message if _is_constant(message, path, line) else WITHHELD
            message, args, error = f"{said} ({error[0].__name__})" if error and error[0] else said, (), None
        return self._make(name, level, path, line, message, args, error, *rest, **more)


@cache
def keep_texts_out() -> None:
    """For the rest of this process, which loads vLLM."""
    logging.setLogRecordFactory(Discreet(logging.getLogRecordFactory()))


def _is_constant(message: Any, path: str, line: int) -> bool:
    """Whether it stands so in the code that logs it: an f-string is a text already."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and (frame.f_code.co_filename, frame.f_lineno) != (path, line):
        frame = frame.f_back
    return frame is not None and message in frame.f_code.co_consts
