"""The logs of supervised processes: files they write to by themselves, kept short, and shown when asked."""

import os
import shutil
from pathlib import Path

MAX_BYTES = 32 << 20  # per process; the part before is kept once, as `<name>.log.1`
_SHOWN_AT_ONCE = 1 << 20


class LogFile:
    """One process's output. Written in append mode by its process, so that it can be cut short under its feet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shown = path.stat().st_size if path.exists() else 0

    def rotate(self) -> None:
        """Start the file anew once it is too long. A line written between copy and cut is lost."""
        if not self.path.exists() or self.path.stat().st_size <= MAX_BYTES:
            return
        kept = self.path.with_name(f"{self.path.name}.1")
        try:
            shutil.copyfile(self.path, kept)
        except OSError:  # a full disk: this file is part of the reason
            kept.unlink(missing_ok=True)
        os.truncate(self.path, 0)
        self._shown = 0

    def fresh(self) -> list[str]:
        """The whole lines written since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as handle:
            handle.seek(self._shown)
            data = handle.read(_SHOWN_AT_ONCE)
        end = data.rfind(b"\n") + 1 or (len(data) if len(data) == _SHOWN_AT_ONCE else 0)
        self._shown += end
        return data[:end].decode(errors="replace").splitlines()

    def tail(self, lines: int) -> str:
        """The last lines, to show with a failure."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as handle:
            handle.seek(max(0, self.path.stat().st_size - _SHOWN_AT_ONCE))
            return "\n".join(handle.read().decode(errors="replace").splitlines()[-lines:])
