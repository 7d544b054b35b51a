"""What `up` tells its user, and keeps in `logs/up.log`. Never a reason to stop or to wait."""

import os
import select
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from cli.terminal import say


class Notices:
    """Lines for the terminal and the log; usable from several threads."""

    def __init__(self, log: Path) -> None:
        self._lock = threading.Lock()
        self._log = os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", buffering=1)

    def say(self, text: str) -> None:
        """Show one notice, and keep it."""
        with self._lock, suppress(OSError):  # a full disk
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self.show(text)

    def show(self, text: str) -> None:
        """Show it and keep it nowhere. A reader that does not read misses it."""
        with self._lock, suppress(OSError, ValueError):
            _, writable, _ = select.select([], [sys.stdout], [], 0)
            if writable:
                say(text)
