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

        from torch import OutOfMemoryError  # here and below: half a minute on a busy machine, in which orders may come

        from workers.engines.training import trainer

        try:
            trainer.run(spec, received, send)
        except RowRefused as error:
            send(Failed("invalid_row", str(error), error.line))
        except trainer.CannotTrain as error:
            send(Failed(error.code, str(error)))
        except OutOfMemoryError as error:
            send(Failed("out_of_memory", f"The device has too little memory: {error}"))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            send(Failed("storage_full", "There is no space left for a checkpoint."))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
