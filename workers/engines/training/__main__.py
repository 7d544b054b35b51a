"""The trainer's process: `python -m workers.engines.training SPEC REPORTS ORDERS PARENT`.

SPEC is a file; REPORTS and ORDERS are descriptors of pipes, PARENT is the worker's pid. The process ends with the
worker, whatever it is doing: by the kernel's signal, and by the end of the orders.
"""

import errno
import os
import sys
from pathlib import Path
from typing import Final

from jobs.platform import processes
from workers.engines.training.protocol import Failed, Orders, Report, decode_spec, encode
from workers.engines.training.rows import RowRefused

#: In the errors of torch: on a GPU, on a processor.
_NO_MEMORY: Final = ("out of memory", "can't allocate memory")
_NICE: Final = 5  # beside an engine on the same processor: its clients wait


def main(spec_file: str, reports: int, orders: int, parent: int) -> None:
    """Train, and report. An error that another try may not meet ends the process with a traceback."""
    processes.die_with(parent)
    os.nice(_NICE)
    spec = decode_spec(Path(spec_file).read_bytes())
    received = Orders(os.fdopen(orders, "rb"))
    with os.fdopen(reports, "wb", buffering=0) as pipe:

        def send(report: Report) -> None:
            pipe.write(encode(report) + b"\n")

        from workers.engines.training import trainer  # here: half a minute on a busy machine, in which orders may come

        try:
            trainer.run(spec, received, send)
        except Exception as error:
            if (failed := _failure(error)) is None:
                raise
            send(failed)


def _failure(error: Exception) -> Failed | None:
    """Return the report of an error that another try would meet too; None of another error."""
    if isinstance(error, RowRefused):
        return Failed("invalid_row", str(error), error.line)
    if isinstance(error, MemoryError | RuntimeError) and _is_out_of_memory(error):
        return Failed("out_of_memory", f"The machine or its device has too little memory: {error}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed("storage_full", "There is no space left for a checkpoint.")
    from workers.engines.training.trainer import CannotTrain

    return Failed(error.code, str(error)) if isinstance(error, CannotTrain) else None


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
