"""A fair gate for the writers of a SQLite database.

SQLite lets one writer in and is not fair about whom: with one process committing back to back the others wait
seconds. Every write transaction therefore holds an exclusive `flock` on `<db>.gate`, which the threads of a process
hand on to each other for some milliseconds. A process that answers clients is `urgent`: while it waits it holds a
shared `flock` on `<db>.haste`, and the others let it go first, each of them for a while before each of its turns; not
if it leaves the gate open, as a frozen one does.
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

_GONE_LOOKS = 50  # that find the gate open: the process that hurries is not there
_LOOK_SECONDS = 0.001  # between looks whether the gate is free
_SHUT_SECONDS = 0.4  # that a client waits while nobody comes in: as many threads as there are would wait otherwise


@dataclass(slots=True)
class Door:
    """One process's side of the gate: its threads queue here, one of them stands at the file."""

    file: FileLock
    haste: FileLock
    threads: threading.Lock = field(default_factory=threading.Lock)
    counting: threading.Lock = field(default_factory=threading.Lock)
    hurrying: int = 0  # threads that wait in a process that is urgent
    waiting: int = 0  # threads that wait for the one at the file, or in it
    open_until: float = 0.0  # when this process's turn is over
    left_open: bool = False  # for the next of its threads
    rests_until: float = 0.0  # who is there has just had its turn
    closing: bool = False  # its files, when nobody is at it
    shut: bool = False  # the last one who waited did not come in,
    locked: bool = False  # for somebody has the database's own lock
    rude_until: float = 0.0

    def close(self) -> None:
        self.file.close()
        self.haste.close()


@dataclass(slots=True)
class _Looks:
    """How often in a row the gate was open. Taken only once, it may have been by somebody who looks as we do."""

    opened: int = 0
    taken: int = 0

    def found_open(self) -> int:
        self.opened, self.taken = self.opened + 1, 0
        return self.opened

    def found_taken(self) -> None:
        self.taken += 1
        if self.taken > 1:
            self.opened = 0


class Gate:
    """An exclusive `flock` between processes. A fork begins with a door of its own: `flock` is between descriptors."""

    def __init__(self, database: str | None, patience: float, urgent: bool, timings: Timings = Timings()) -> None:
        self._path = Path(f"{database}.gate")
        self._haste = Path(f"{database}.haste")
        self._patience = patience
        self._urgent = urgent
        self._timings = timings
        self._doors: dict[int, Door] = {}

    @contextmanager
    def hold(self) -> Iterator[Door]:
        """The door, which its holder says is open once the database has let it in."""
        began = time.monotonic()
        door = self._door()
        with ExitStack() as inside:
            with self._hurry(door):
                if not self._is_next(door):
                    door.shut = True
                    raise DatabaseBusy
                inside.callback(self._leave, door)
                self._enter(door, began)
            try:
                yield door
            except OperationalError:
                door.shut = door.locked = True
                raise

    def _leave(self, door: Door) -> None:
        with door.counting:
            at = time.monotonic()
            door.left_open = door.waiting > 0 and not door.shut and at < door.open_until
            if not door.left_open:
                door.open_until = 0.0
                door.rests_until = at + self._timings.writer_rest if door.waiting else 0.0
                door.file.release()
            if door.closing and not door.hurrying and not door.left_open:
                door.close()
            door.threads.release()

    def _is_next(self, door: Door) -> bool:
        with door.counting:
            door.waiting += 1
        try:
            came = door.threads.acquire(timeout=self._patience_at(door))
        finally:
            with door.counting:
                door.waiting -= 1
        if came:
            return True
        with door.counting:  # it may have been left open for us alone, just as we gave up
            return door.left_open and door.threads.acquire(blocking=False)

    def _patience_at(self, door: Door) -> float:
        """Who answers clients need not have each of them find out in full what the one before has."""
        return min(self._patience, _SHUT_SECONDS) if self._urgent and door.shut else self._patience

    def _door(self) -> Door:
        """This process's. What a fork has of its parent's would keep the gate locked if the parent died."""
        mine = os.getpid()
        for pid in list(self._doors):
            if pid != mine and (other := self._doors.pop(pid, None)) is not None:
                other.close()
        return self._doors.setdefault(mine, Door(FileLock(self._path), FileLock(self._haste)))

    def close(self) -> None:
        door = self._doors.pop(os.getpid(), None)
        if door is None:
            return
        door.closing = True
        if door.threads.acquire(blocking=False):
            self._leave(door)

    @contextmanager
    def _hurry(self, door: Door) -> Iterator[None]:
        """Say that somebody urgent waits. Never waits itself: who is told nothing treats us like any other."""
        if not self._urgent:
            yield
            return
        with door.counting:
            door.hurrying += 1
            door.haste.try_acquire(shared=True)
        try:
            yield
        finally:
            with door.counting:
                door.hurrying -= 1
                if not door.hurrying:
                    door.haste.release()

    def _enter(self, door: Door, came: float) -> None:
        """A blocking flock has no timeout, so: try, with short pauses."""
        if door.left_open:
            return
        deadline = came + self._patience_at(door)
        if door.locked and time.monotonic() > deadline:
            raise DatabaseBusy  # it would wait at the database's own lock for as long again
        pause, looks = threading.Event(), _Looks()
        pause.wait(max(0.0, door.rests_until - time.monotonic()))
        polite_until = time.monotonic() + self._timings.writer_polite
        while True:
            at = time.monotonic()
            if not door.file.try_acquire():
                looks.found_taken()
            elif self._urgent or at > polite_until or at < door.rude_until or not self._others_hurry(door):
                door.open_until = at + self._timings.writer_turn
                return
            else:
                door.file.release()  # theirs
                if looks.found_open() >= _GONE_LOOKS:
                    door.rude_until = at + self._timings.writer_rude
            if at > deadline:
                door.shut = True
                raise DatabaseBusy
            pause.wait(_LOOK_SECONDS)

    def _others_hurry(self, door: Door) -> bool:
        if not door.haste.try_acquire():
            return True
        door.haste.release()
        return False
