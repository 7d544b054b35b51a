"""Who else asks the same server: the worker processes of this host that share one HTTP engine.

    door   shut (flock, exclusive) by the process that wants to be alone; the others begin nothing new
    room   held (flock, shared) by every process with a request in flight; exclusive for the one that is alone

A line that broke its connection each time is tried alone in the end, so that whoever breaks it then is known. Where two
workers attach the same server, the crash that one worker's line causes breaks the other's lines too: an innocent one
that is "alone" over there at that moment would be condemned with it. Locks go with the process that held them, and a
process that shuts the door and hangs is waited for no longer than `patience` seconds.
"""

import asyncio
import fcntl
import time
from pathlib import Path
from typing import IO, Final

POLL_SECONDS: Final = 0.02  # between looks, also between those of a process that is busy anyway


class Company:
    """One process's side of it, for one event loop."""

    def __init__(self, folder: Path, patience: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._door = (folder / "door").open("a")
        self._room = (folder / "room").open("a")
        self._patience = patience
        self._inside = False
        self._looked = self._shut_since = float("-inf")
        self._shut = False

    def may_begin(self) -> bool:
        """Whether nobody is alone; if so, this process has something in flight until `leave`."""
        at = time.monotonic()
        if not self._inside or at - self._looked >= POLL_SECONDS:
            self._looked = at
            self._look(at)
        if self._shut and at - self._shut_since < self._patience:
            return False
        self._inside = True
        return True

    async def be_alone(self) -> None:
        """Wait until no other process has a request in flight, and keep it so until `leave`. We have none."""
        deadline = time.monotonic() + self._patience
        await asyncio.sleep(POLL_SECONDS)  # who was alone just now lets others go first
        for lock in (self._door, self._room):
            while not _locked(lock, fcntl.LOCK_EX) and time.monotonic() < deadline:  # noqa: ASYNC110 (a flock tells nobody)
                await asyncio.sleep(POLL_SECONDS)

    def leave(self) -> None:
        """Nothing of ours is in flight any more."""
        self._inside = False
        for lock in (self._room, self._door):
            fcntl.flock(lock, fcntl.LOCK_UN)

    def close(self) -> None:
        self._door.close()
        self._room.close()

    def _look(self, at: float) -> None:
        """Is the door open, and is our place in the room taken?"""
        is_open = _locked(self._door, fcntl.LOCK_SH)
        if is_open:
            fcntl.flock(self._door, fcntl.LOCK_UN)
        shut = not (is_open and (self._inside or _locked(self._room, fcntl.LOCK_SH)))
        if shut and not self._shut:
            self._shut_since = at
        self._shut = shut


def _locked(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
