"""Failures of the database and the file storage, counted in this process until a transaction can write them down.

While the database is away nothing can be written. The counts wait in memory, and the next transaction of this process
that commits takes them along: see `jobs.ledger.measures`. A process that ends before that loses its counts.
"""

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Final

DATABASE: Final = "database"
STORAGE: Final = "storage"

Failure = tuple[str, str]  # of what, and why

_counts = Counter[Failure]()
_lock = threading.Lock()


def count(what: str, reason: str) -> None:
    """Count a failure of DATABASE or STORAGE. `reason` is a constant word."""
    add({(what, reason): 1})


def add(counts: Mapping[Failure, int]) -> None:
    """Count failures again whose transaction was not committed."""
    with _lock:
        _counts.update(counts)


def take() -> Counter[Failure]:
    """Return the failures that are not written yet, and forget them."""
    with _lock:
        taken = Counter(_counts)
        _counts.clear()
    return taken
