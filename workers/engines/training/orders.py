"""Read the worker's orders in the trainer's process, in a thread of their own, while training goes on."""

import os
import threading
from typing import BinaryIO, Final

from workers.engines.training.protocol import CHECKPOINT_AND_STOP

_ORPHANED: Final = os.EX_IOERR


class Orders:
    """The orders that have come. A worker whose end of the pipe is closed is gone: this process ends at once."""

    def __init__(self, pipe: BinaryIO) -> None:
        self.checkpoint_and_stop = threading.Event()
        self._pipe = pipe
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def _read(self) -> None:
        for line in self._pipe:
            if line == CHECKPOINT_AND_STOP:
                self.checkpoint_and_stop.set()
        os._exit(_ORPHANED)
