"""A fair lock of the writers of a SQLite database.

SQLite admits one writer and is not fair: with one process that commits back to back, the others wait seconds. Every
write transaction therefore holds an exclusive `flock` on `<db>.lock`, which the threads of a process hand on to each
other for some milliseconds. A process that answers clients is `urgent`: while it waits it holds a shared `flock` on
`<db>.priority`, and the other processes yield: each of them waits for a while before each of its turns. They do not
yield to a process that does not take the lock although it is free, as a frozen one does.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import OperationalError

from jobs.errors import DatabaseBusy
from jobs.platform.locks import FileLock
from jobs.timings import Timings

_FROZEN_LOOKS = 50  # that find the lock free: the urgent process is frozen
_LOOK_SECONDS = 0.001  # between attempts to take the lock
_TIMED_OUT_SECONDS = 0.4  # of waiting after another thread has timed out: else all threads would wait in full


@dataclass(slots=True)
class ProcessState:
    """The state of the lock in one process: its threads queue here, and one of them tries the file."""

    file: FileLock
    priority: FileLock
    threads: threading.Lock = field(default_factory=threading.Lock)
    counting: threading.Lock = field(default_factory=threading.Lock)
    urgent_waiting: int = 0  # threads that wait in an urgent process
    waiting: int = 0  # threads that wait for the one that has the lock, or tries the file
    turn_until: float = 0.0  # end of this process's turn
    handed_on: bool = False  # to the next of its threads, with the file locked
    pause_until: float = 0.0  # until which the process leaves the lock to others after its turn
    closing: bool = False  # its files are closed once no thread needs them
    timed_out: bool = False  # the last thread that waited did not get the lock,
    database_locked: bool = False  # because another program has the database's own lock
    ignore_until: float = 0.0

    def close(self) -> None:
        self.file.close()
        self.priority.close()


@dataclass(slots=True)
class _Looks:
    """Count how often in a row the lock was free.

    Found taken once, it may have been taken by another that only looks.
    """

    found_free: int = 0
    taken: int = 0

    def saw_free(self) -> int:
        self.found_free, self.taken = self.found_free + 1, 0
        return self.found_free

    def saw_taken(self) -> None:
        self.taken += 1
        if self.taken > 1:
            self.found_free = 0


class WriterLock:
    """An exclusive `flock` between processes. A fork has a state of its own: a `flock` belongs to a descriptor."""

    def __init__(self, database: str | None, patience: float, urgent: bool, timings: Timings = Timings()) -> None:
        self._path = Path(f"{database}.lock")
        self._priority = Path(f"{database}.priority")
        self._patience = patience
        self._urgent = urgent
        self._timings = timings
        self._states: dict[int, ProcessState] = {}

    @contextmanager
    def hold(self) -> Iterator[ProcessState]:
        """Hold the lock; yield the state, in which the caller notes that the database was not locked.

        Raises DatabaseBusy.
        """
        began = time.monotonic()
        state = self._state()
        with ExitStack() as inside:
            with self._announce(state):
                if not self._is_next(state):
                    state.timed_out = True
                    raise DatabaseBusy
                inside.callback(self._leave, state)
                self._enter(state, began)
            try:
                yield state
            except OperationalError:
                state.timed_out = state.database_locked = True
                raise

    def _leave(self, state: ProcessState) -> None:
        with state.counting:
            at = time.monotonic()
            state.handed_on = state.waiting > 0 and not state.timed_out and at < state.turn_until
            if not state.handed_on:
                state.turn_until = 0.0
                state.pause_until = at + self._timings.writer_pause if state.waiting else 0.0
                state.file.release()
            if state.closing and not state.urgent_waiting and not state.handed_on:
                state.close()
            state.threads.release()

    def _is_next(self, state: ProcessState) -> bool:
        with state.counting:
            state.waiting += 1
        try:
            came = state.threads.acquire(timeout=self._patience_at(state))
        finally:
            with state.counting:
                state.waiting -= 1
        if came:
            return True
        with state.counting:  # it may have been handed on to this thread just as it gave up
            return state.handed_on and state.threads.acquire(blocking=False)

    def _patience_at(self, state: ProcessState) -> float:
        """Return the seconds to wait: fewer in an urgent process in which a thread has just waited in vain."""
        return min(self._patience, _TIMED_OUT_SECONDS) if self._urgent and state.timed_out else self._patience

    def _state(self) -> ProcessState:
        """Return the state of this process.

        Close a parent's after a fork: it would keep the lock if the parent died.
        """
        own_pid = os.getpid()
        for pid in list(self._states):
            if pid != own_pid and (other := self._states.pop(pid, None)) is not None:
                other.close()
        return self._states.setdefault(own_pid, ProcessState(FileLock(self._path), FileLock(self._priority)))

    def close(self) -> None:
        state = self._states.pop(os.getpid(), None)
        if state is None:
            return
        state.closing = True
        if state.threads.acquire(blocking=False):
            self._leave(state)

    @contextmanager
    def _announce(self, state: ProcessState) -> Iterator[None]:
        """Announce that an urgent thread waits, without waiting for that: at worst this process has no precedence."""
        if not self._urgent:
            yield
            return
        with state.counting:
            state.urgent_waiting += 1
            state.priority.try_acquire(shared=True)
        try:
            yield
        finally:
            with state.counting:
                state.urgent_waiting -= 1
                if not state.urgent_waiting:
                    state.priority.release()

    def _enter(self, state: ProcessState, came: float) -> None:
        """Take the lock of the file, with short pauses between attempts: a blocking `flock` has no timeout."""
        if state.handed_on:
            return
        deadline = came + self._patience_at(state)
        if state.database_locked and time.monotonic() > deadline:
            raise DatabaseBusy  # the database's own lock would be waited for as long again
        pause, looks = threading.Event(), _Looks()
        pause.wait(max(0.0, state.pause_until - time.monotonic()))
        yield_until = time.monotonic() + self._timings.writer_yield
        while True:
            at = time.monotonic()
            if not state.file.try_acquire():
                looks.saw_taken()
            elif self._urgent or at > yield_until or at < state.ignore_until or not self._urgent_waits(state):
                state.turn_until = at + self._timings.writer_turn
                return
            else:
                state.file.release()  # for the urgent process
                if looks.saw_free() >= _FROZEN_LOOKS:
                    state.ignore_until = at + self._timings.writer_ignore
            if at > deadline:
                state.timed_out = True
                raise DatabaseBusy
            pause.wait(_LOOK_SECONDS)

    def _urgent_waits(self, state: ProcessState) -> bool:
        if not state.priority.try_acquire():
            return True
        state.priority.release()
        return False
