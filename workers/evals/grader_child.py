"""The template process of python graders: fork a process for each input, which runs `grade(sample, item)`.

The source is hostile: it runs only in the forked process, see `workers.sandbox.forking`.
"""

import builtins
import json
import math
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
_LARGEST_RESULT: Final = 1 << 16
_SHOWN: Final = 500  # characters of an error


class Run(msgspec.Struct, frozen=True):
    """A message to the template: run the input that the descriptor beside it holds, for at most `seconds`."""

    seconds: float


class Result(msgspec.Struct, frozen=True):
    """The score of a run, or why there is none.

    `error` is of the grader's code. `fault` is of the sandbox, in which case nothing is known about the code.
    """

    score: float | None = None
    error: str = ""
    fault: str = ""


encode = msgspec.msgpack.encode
decode_result = msgspec.msgpack.Decoder(Result).decode
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


def _run(descriptor: int, seconds: float) -> Result:
    work = partial(_grade, descriptor)
    try:
        answer = forking.run_input(work, LIMITS, descriptors=[descriptor], seconds=seconds, largest=_LARGEST_RESULT)
        return decode_result(answer)
    except forking.Unconfined:
        return Result(fault="The sandbox lacks a part.")
    except forking.OutOfTime:
        return Result(error=f"TimeoutError: the code ran for more than {seconds:g} seconds")
    except forking.Ended as ended:
        return Result(error=_ending(ended.signal))
    except msgspec.MsgspecError:
        return Result(error="SystemError: the code wrote into the pipe of its score")


def _ending(by_signal: int) -> str:
    if by_signal == signal.SIGXCPU:
        return f"TimeoutError: the code used more than {LIMITS.cpu_seconds} seconds of a processor"
    if by_signal:
        return f"SystemError: the process was ended by {signal.Signals(by_signal).name}"
    return "SystemExit: the process ended without a score"


def _grade(descriptor: int) -> bytes:
    """Run the code of an input in this process, and return the encoded result."""
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        given = json.load(file)
    try:
        names: dict[str, Any] = {"__name__": "grader", "__builtins__": builtins}
        exec(compile(given["source"], "grader.py", "exec"), names)  # noqa: S102 (what the sandbox is for)
        score = _number(names["grade"](given["sample"], given["item"]))
    except BaseException as error:  # noqa: BLE001 (whatever the code raises is its result)
        return encode(Result(error=_described(error)))
    return encode(Result(score=score))


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(f"grade returned {type(value).__name__}, not a number")
    score = float(value)
    if not math.isfinite(score):
        raise ValueError(f"grade returned {score}, not a finite number")
    return score


def _described(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args == ("grade",):
        return "NameError: the source defines no function 'grade'"
    return f"{type(error).__name__}: {error}"[:_SHOWN].encode(errors="replace").decode()
