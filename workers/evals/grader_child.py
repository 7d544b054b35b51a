"""The template process of python graders: fork a process for each input, which runs `grade(sample, item)`.

The source is hostile: it runs only in the forked process, see `workers.sandbox.forking`. That process says a
`GraderAnswer`, which the source may have written itself. The template passes it on unread, in a
`GraderOutcome` of its own.
"""

import builtins
import json
import os
import signal
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, Final

import msgspec

from workers.sandbox import forking
from workers.sandbox.channel import Channel
from workers.sandbox.confinement import InputLimits

#: OpenAI's limits, but for the disk: it is memory here.
LIMITS: Final = InputLimits(memory_bytes=2 << 30, disk_bytes=256 << 20, cpu_seconds=120, threads=64)
#: Modules that most graders import, loaded once: a forked process has them at once.
_PRELOADED: Final = ("collections", "datetime", "itertools", "numpy", "random", "re", "statistics", "string")
MAX_ANSWER: Final = 1 << 16
#: Characters of an error.
MAX_ERROR: Final = 500


class Run(msgspec.Struct, frozen=True):
    """A message to the template: run the input that the descriptor beside it holds, for at most `seconds`."""

    seconds: float


class GraderAnswer(msgspec.Struct, frozen=True):
    """The score or the error that the process of the code wrote. Anything may stand there."""

    score: float | None = None
    error: str = ""


class GraderOutcome(msgspec.Struct, frozen=True):
    """The report of the template on a run: one of the three.

    `answer`: the bytes that the process of the code wrote.
    `error`: how that process ended without any.
    `fault`: why the sandbox ran nothing, which tells nothing about the code.
    """

    answer: bytes = b""
    error: str = ""
    fault: str = ""


encode = msgspec.msgpack.encode
decode_answer = msgspec.msgpack.Decoder(GraderAnswer).decode
decode_outcome = msgspec.msgpack.Decoder(GraderOutcome).decode
_decode_run = msgspec.msgpack.Decoder(Run).decode


def main(channel: Channel) -> None:
    for name in _PRELOADED:
        with suppress(ImportError):
            import_module(name)
    channel.missing = (*channel.missing, *forking.missing_in_inputs())
    channel.ready()
    while (received := channel.receive()) is not None:
        message, [descriptor] = received
        channel.send(encode(_run(descriptor, _decode_run(message).seconds)))
        os.close(descriptor)


def _run(descriptor: int, seconds: float) -> GraderOutcome:
    work = partial(_grade, descriptor)
    try:
        return GraderOutcome(
            forking.run_input(work, LIMITS, descriptors=[descriptor], seconds=seconds, largest=MAX_ANSWER)
        )
    except forking.Unconfined:
        return GraderOutcome(fault="The process of the code could not be confined.")
    except forking.OutOfTime:
        return GraderOutcome(error=f"TimeoutError: the code ran for more than {seconds:g} seconds")
    except forking.Ended as ended:
        return GraderOutcome(error=_ending(ended.signal))


def _ending(by_signal: int) -> str:
    if by_signal == signal.SIGXCPU:
        return f"TimeoutError: the code used more than {LIMITS.cpu_seconds} seconds of a processor"
    if by_signal:
        return f"SystemError: the process was ended by {signal.Signals(by_signal).name}"
    return "SystemExit: the process ended without a score"


def _grade(descriptor: int) -> bytes:
    """Run the code of an input in this process, and return the encoded answer."""
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        given = json.load(file)
    try:
        names: dict[str, Any] = {"__name__": "grader", "__builtins__": builtins}
        exec(compile(given["source"], "grader.py", "exec"), names)  # noqa: S102 (what the sandbox is for)
        score = _number(names["grade"](given["sample"], given["item"]))
    except BaseException as error:  # noqa: BLE001 (whatever the code raises is its result)
        return encode(GraderAnswer(error=_describe(error)))
    return encode(GraderAnswer(score))


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(f"grade returned {type(value).__name__}, not a number")
    return float(value)


def _describe(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args == ("grade",):
        return "NameError: the source defines no function 'grade'"
    return f"{type(error).__name__}: {error}"[:MAX_ERROR].encode(errors="replace").decode()
