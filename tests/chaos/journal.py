"""The journal of a run, in order: its last part is printed with a failure."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

SHOWN = 200


@dataclass(slots=True)
class Journal:
    """`violations` are what must not be; `notes` are everything, each with its second."""

    seed: int
    began: float = field(default_factory=time.monotonic)
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=5000))
    violations: list[str] = field(default_factory=list)
    told: Callable[[str], None] = lambda _: None  # hears each note as it is made
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, text: str) -> None:
        line = f"{time.monotonic() - self.began:7.2f}  {text}"
        self.notes.append(line)
        self.told(line)

    def violation(self, *texts: str) -> None:
        with self._lock:
            for text in texts:
                self.note(f"VIOLATION {text}")
                self.violations.append(text)

    def story(self) -> str:
        """For the one who has to find out."""
        return "\n".join((f"seed {self.seed}", *list(self.notes)[-SHOWN:], *self.violations))
