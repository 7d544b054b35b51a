"""Limit the time of requests to servers. All have the same limit, so one timer, for the oldest request, is enough.

    begins ──▶ end of the queue ──▶ ends in time: leaves the queue
      renewed ──▶    │ the timer, set for the head of the queue
                     └──▶ its task is cancelled ──▶ TimeoutError where it began

A timer for each request cost an eighth of the CPU of asking over HTTP.
"""

import asyncio
from types import TracebackType
from typing import Final, Self

#: How many times the limit a request may take that makes progress.
MAX_EXTENSION: Final = 5


class Deadlines:
    """The requests in flight, oldest first. Each may take `seconds`. For one event loop."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._line: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def limit(self) -> "Deadline":
        """Return a context in which the current task spends at most `seconds`, or gets TimeoutError."""
        return Deadline(self)

    def add(self, deadline: "Deadline") -> None:
        self._line[deadline] = None
        if self._timer is None:
            self._timer = deadline.loop.call_at(deadline.end, self._look)

    def remove(self, deadline: "Deadline") -> None:
        self._line.pop(deadline, None)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Cancel the tasks whose time is up, and set the timer for the oldest one that is left."""
        self._timer = None
        for deadline in list(self._line):
            if deadline.end > deadline.loop.time():
                self._timer = deadline.loop.call_at(deadline.end, self._look)
                return
            self.remove(deadline)
            deadline.expire()


class Deadline:
    """The time limit of one request, as `asyncio.timeout` has it."""

    __slots__ = ("_all", "_cancelling", "_expired", "_last", "_task", "end", "loop")

    def __init__(self, deadlines: Deadlines) -> None:
        self._all, self._expired = deadlines, False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task, "only a task can be cancelled"
        self._task, self._cancelling = task, task.cancelling()
        self.loop = task.get_loop()
        self.end = self.loop.time() + self._all.seconds
        self._last = self.loop.time() + self._all.seconds * MAX_EXTENSION
        self._all.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._all.remove(self)
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def renew(self) -> None:
        """Begin the time of a request again, which makes progress; it has `MAX_EXTENSION` times as long in all."""
        end = self.loop.time() + self._all.seconds
        if not self._expired and end <= self._last:
            self._all.remove(self)
            self.end = end
            self._all.add(self)

    def expire(self) -> None:
        self._expired = True
        self._task.cancel()
