"""A watchdog for connections to PostgreSQL: a server that is frozen or cut off is noticed in time.

A statement may take long, so silence alone says nothing. A connection that received nothing for a third of its patience
asks the server, on another connection, whether it is there: eight bytes, which a server answers before any login. If it
does not answer, the connection is closed, and its user gets the error of a server that died. If the server answers, but
the statement outlives the time that the server itself gives it, the connection was lost, and the same happens. psycopg
has no such limit of its own, and TCP's takes a quarter of an hour.
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
#: Limits of the operating system for bytes that are not acknowledged: milliseconds, then seconds.
TCP: Mapping[str, int] = {
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}
#: Settings of a session: the server ends statements that take too long, and drops connections whose client is gone.
SESSION: Mapping[str, int] = {
    "statement_timeout": int(STATEMENT_SECONDS * 1000),
    "lock_timeout": 10_000,
    **{f"tcp_{name}": TCP[name] for name in TCP if name.startswith("keepalives")},
}
_BEGIN_SESSION = "SELECT pg_backend_pid(), " + ", ".join(
    f"set_config('{name}', '{value}', false)" for name, value in SESSION.items()
)


def answers(host: str, port: int, seconds: float) -> bool:
    """Return whether a PostgreSQL server answers, and not merely a port that takes connections."""
    try:
        with closing(_connect(host, port, seconds)) as probe:
            probe.sendall(_SSL_REQUEST)
            return bool(probe.recv(1))
    except OSError:
        return False


def _connect(host: str, port: int, seconds: float) -> socket.socket:
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


class ServerProbe:
    """Probe the server of one process's connections. A connection is lost after `lost` seconds without a byte."""

    def __init__(self, patience: float, lost: float) -> None:
        self.lost = lost
        self.interval = self._seconds = patience / 3
        self._unanswered_at = -self._seconds  # when the server last did not answer

    def connect(self, _dialect: object, _record: object, args: Sequence[Any], named: Mapping[str, Any]) -> "Watched":
        """Connect, as SQLAlchemy's `do_connect`.

        Raises OperationalError at once when the server has just not answered.
        """
        host, port = str(named.get("host") or ""), named.get("port") or 5432
        if (host and time.monotonic() - self._unanswered_at < self._seconds) or not self.answers(host, port):
            raise psycopg.OperationalError("the server does not answer")
        made = Watched.connect(*args, **named)
        made.probe = self
        try:
            made.begin_session()
        except psycopg.Error:
            made.close()
            raise
        return made

    def answers(self, host: str, port: int | str) -> bool:
        """Return whether the server answers; True where only libpq knows the host, or there are several."""
        if not host or "," in host:
            return True
        is_there = answers(host, int(port), self._seconds)
        if not is_there:
            self._unanswered_at = time.monotonic()
        return is_there


class Watched(psycopg.Connection[Any]):
    """A connection that is closed when its server does not answer."""

    probe: ServerProbe | None = None
    #: Whether a pooler such as PgBouncer stands between, which may give each transaction another connection of its own.
    pooled = False

    def begin_session(self) -> None:
        """Set the settings of the session by a statement: poolers refuse them at the start of a connection.

        A pooler is known by the process number that it made up for the connection. Behind it nothing is prepared: the
        next transaction may be on a connection that has no such statement, or another client's.
        """
        self.autocommit = True
        (pid, *_) = self.execute(_BEGIN_SESSION, prepare=False).fetchone() or (None,)
        self.autocommit = False
        self.pooled = pid != self.info.backend_pid
        if self.pooled:
            self.prepare_threshold = None

    def wait(self, gen: PQGen[R], interval: float = _INTERVAL, timeout: float | None = None) -> R:
        watched = gen if self.probe is None else self._wait_with_probe(gen, self.probe)
        return super().wait(watched, interval, timeout)

    def _wait_with_probe(self, gen: PQGen[R], probe: ServerProbe) -> Generator[Any, Any, R]:
        """Run `gen`, and probe the server after each `probe.interval` without a byte."""
        received = probed = time.monotonic()
        ready: Any = None
        try:
            while True:
                wait = gen.send(ready)
                ready = yield wait
                at = time.monotonic()
                if ready:
                    received = probed = at
                elif at - probed > probe.interval:
                    self._probe(probe, at - received)
                    probed = time.monotonic()
        except StopIteration as end:
            result: R = end.value
            return result

    def _probe(self, probe: ServerProbe, silent: float) -> None:
        if silent > probe.lost or not probe.answers(self.info.host, self.info.port):
            self.pgconn.finish()
            raise psycopg.OperationalError(f"the server has sent nothing for {silent:.1f} s")
