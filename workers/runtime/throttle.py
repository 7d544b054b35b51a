"""How many lines of batches are with an engine while somebody waits at a screen.

    a line of a batch ──▶ room? ──▶ engine                nobody waits: a little more than the engine is meant to run,
                            └── no: it waits, in order     so that it still does while one is followed by the next
    a client asks ──▶ room for a few lines only, until some seconds after the last answer

Priority alone lets a question overtake what waits, not what runs: on a CPU a step takes as long as all that is in it.
So what would make the steps long is kept out. Where the engine is quick (a GPU), nothing is.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: The most lines in flight while somebody waits, and while nobody does; None: no bound.
Crowd = tuple[int, int]
_SECONDS = 10.0


def unbounded() -> Crowd | None:
    """No bound."""
    return None


class Courtesy:
    """For one event loop. `crowd` is asked each time: an engine says it once it is up."""

    def __init__(self, crowd: Callable[[], Crowd | None] = unbounded, seconds: float = _SECONDS) -> None:
        self._crowd, self._seconds = crowd, seconds
        self._turns: deque[asyncio.Future[None]] = deque()
        self._inside = self._asking = 0
        self._until = float("-inf")

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Somebody waits for an answer."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1
            self._until = time.monotonic() + self._seconds
            asyncio.get_running_loop().call_later(self._seconds, self._admit)

    async def come(self) -> None:
        """A line of a batch is let in once there is room for it; whoever came must go."""
        if self._turns or not self._room():
            await self._turn()
        else:
            self._inside += 1

    def go(self) -> None:
        self._inside -= 1
        if self._turns:
            self._admit()

    async def _turn(self) -> None:
        """Whoever calls us up has counted us."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._inside -= 1
            self._admit()
            raise

    @property
    def most(self) -> int | None:
        """How many lines may be in flight now; None: no bound."""
        crowd = self._crowd()
        if crowd is None:
            return None
        waited = self._asking or time.monotonic() < self._until
        return crowd[0 if waited else 1]

    def _room(self) -> bool:
        most = self.most
        return most is None or self._inside < most

    def _admit(self) -> None:
        while self._turns and (self._turns[0].done() or self._room()):
            turn = self._turns.popleft()
            if not turn.done():
                self._inside += 1
                turn.set_result(None)
