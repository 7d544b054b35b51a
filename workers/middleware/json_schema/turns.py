"""Who is next, and who has had enough: a tenant whose schemas are slow to check is not to keep others waiting."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: What took less is not counted: a batch may have a million answers that are checked at once.
SLOW_SECONDS: Final = 1.0
#: So much of each minute may be spent on what is slow of one tenant.
BUDGET_SECONDS: Final = 20.0
_MINUTE: Final = 60.0


class Turns(Generic[T]):
    """What waits, one of each tenant after the other. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[T]] = {}
        self._last = ""

    def add(self, tenant: str, item: T) -> None:
        with self._lock:
            self._waiting.setdefault(tenant, deque()).append(item)

    def next(self) -> T:
        """There has to be one."""
        with self._lock:
            tenant = self._last = next((one for one in self._waiting if one != self._last), self._last)
            items = self._waiting.pop(tenant)
            item = items.popleft()
            if items:
                self._waiting[tenant] = items
            return item


class Budget:
    """The seconds that were slow, by tenant; they are forgiven evenly."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spent: dict[str, tuple[float, float]] = {}  # as of when

    def is_spent(self, tenant: str) -> bool:
        return self._left_of(tenant) > BUDGET_SECONDS

    def took(self, tenant: str, seconds: float) -> None:
        if seconds >= SLOW_SECONDS:
            kept = {one: known for one, known in self._spent.items() if self._left_of(one)}
            self._spent = kept | {tenant: (self._left_of(tenant) + seconds, self._clock())}

    def _left_of(self, tenant: str) -> float:
        spent, at = self._spent.get(tenant, (0.0, 0.0))
        return max(spent - (self._clock() - at) * BUDGET_SECONDS / _MINUTE, 0.0)
