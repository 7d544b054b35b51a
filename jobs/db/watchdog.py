"""PostgreSQL that says nothing: who waits for a server that is frozen or cut off hears of it in time.

A statement may take long, so silence alone says nothing. Who heard nothing for a third of its patience asks the server
on another connection whether it is there: eight bytes, which it answers before anybody has logged in. If it does not,
the connection is closed, and whoever waited on it gets what it would get of a server that had died. If it does, but the
statement outlives the time that the server itself gives it, the connection was lost without a word, and the same
happens. psycopg has no such limit of its own, and TCP's takes a quarter of an hour.
"""

import socket
import struct
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

R = TypeVar("R")

STATEMENT_SECONDS = 30.0  # the server ends a statement after so long
_INTERVAL = 0.1
_SSL_REQUEST = struct.pack("!ii", 8, 80_877_103)
#: What the system does by itself, where no byte of ours is acknowledged: milliseconds, and seconds.
TCP: Mapping[str, int] = {
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}
#: What the server does: it ends what takes too long, and lets go of what belongs to nobody any more.
OPTIONS = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "statement_timeout": int(STATEMENT_SECONDS * 1000),
        "lock_timeout": 10_000,
        **{f"tcp_{name}": TCP[name] for name in TCP if name.startswith("keepalives")},
    }.items()
)


def answers(host: str, port: int, seconds: float) -> bool:
    """Whether a PostgreSQL is there, and not merely a port that takes connections."""
    try:
        with closing(_connected(host, port, seconds)) as probe:
            probe.sendall(_SSL_REQUEST)
            return bool(probe.recv(1))
    except OSError:
        return False


def _connected(host: str, port: int, seconds: float) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host, port), seconds)
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(seconds)
    try:
        made.connect(f"{host}/.s.PGSQL.{port}")
    except OSError:
        made.close()
        raise
    return made


class Pulse:
    """Of one process's connections to one server, which are lost after `lost` seconds without a byte."""

    def __init__(self, patience: float, lost: float) -> None:
        self.lost = lost
        self.silence = self._seconds = patience / 3
        self._missed = -self._seconds  # when it was last found not to answer

    def connect(self, _dialect: object, _record: object, args: Sequence[Any], named: Mapping[str, Any]) -> "Watched":
        """SQLAlchemy's `do_connect`. Raises OperationalError at once when the server has just been found silent."""
        host, port = str(named.get("host") or ""), named.get("port") or 5432
        if (host and time.monotonic() - self._missed < self._seconds) or not self.beats(host, port):
            raise psycopg.OperationalError("the server does not answer")
        made = Watched.connect(*args, **named)
        made.pulse = self
        return made

    def beats(self, host: str, port: int | str) -> bool:
        """Of several hosts, or one that only libpq knows, nothing can be told."""
        if not host or "," in host:
            return True
        found = answers(host, int(port), self._seconds)
        if not found:
            self._missed = time.monotonic()
        return found


class Watched(psycopg.Connection[Any]):
    """A connection that is given up when its server is silent."""

    pulse: Pulse | None = None

    def wait(self, gen: PQGen[R], interval: float = _INTERVAL, timeout: float | None = None) -> R:
        watched = gen if self.pulse is None else self._heard(gen, self.pulse)
        return super().wait(watched, interval, timeout)

    def _heard(self, gen: PQGen[R], pulse: Pulse) -> Generator[Any, Any, R]:
        """`gen`, which is told of each interval without a byte, and so are we."""
        heard = asked = time.monotonic()
        ready: Any = None
        try:
            while True:
                wanted = gen.send(ready)
                ready = yield wanted
                at = time.monotonic()
                if ready:
                    heard = asked = at
                elif at - asked > pulse.silence:
                    self._ask(pulse, at - heard)
                    asked = time.monotonic()
        except StopIteration as end:
            result: R = end.value
            return result

    def _ask(self, pulse: Pulse, silent: float) -> None:
        if silent > pulse.lost or not pulse.beats(self.info.host, self.info.port):
            self.pgconn.finish()
            raise psycopg.OperationalError(f"the server has said nothing for {silent:.1f} s")
