"""The child process: `python -m workers.parsing.child PARENT`. It reads files until its parent has no more.

Standard output is the pipe to the parent, so what a library prints there goes nowhere.
"""

import os
import sys
from collections.abc import Callable
from typing import BinaryIO

from workers.parsing import reading, sandbox, wire
from workers.parsing.terms import Refused, invalid

Work = Callable[[wire.Ask], wire.Parsed]


def serve(work: Work, parent: int) -> None:
    asked, answers = pipes()
    wire.write(answers, wire.encode(wire.Ready(sandbox.confine(parent))))
    while (message := wire.read(asked)) is not None:
        wire.write(answers, answer(work, wire.decode_ask(message)))


def answer(work: Work, ask: wire.Ask) -> bytes:
    """Encoded. The one boundary: whatever a library raises is a refusal."""
    try:
        encoded = wire.encode(work(ask))
        if len(encoded) > wire.largest_answer(ask.limits):
            raise invalid("The file has too much text.")
    except Refused as no:
        encoded = wire.encode(wire.Refusal(no.code, no.message))
    except MemoryError:
        limit = ask.limits.memory_bytes >> 20
        encoded = _refusal(f"The file could not be parsed within its limits of {limit} MiB of memory.")
    except BaseException:  # noqa: BLE001 (a Rust panic is no Exception; the parent replaces this process)
        encoded = _refusal("The file could not be parsed: it is damaged, or not what it says it is.")
    return encoded


def _refusal(message: str) -> bytes:
    return wire.encode(wire.Refusal("invalid_file", message))


def pipes() -> tuple[BinaryIO, BinaryIO]:
    asked, answers = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(nowhere, number)
    os.close(nowhere)
    return os.fdopen(asked, "rb"), os.fdopen(answers, "wb")


if __name__ == "__main__":
    serve(reading.Reader().read, int(sys.argv[1]))
