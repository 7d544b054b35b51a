"""Start the services, restart those that exit, and stop all: the API first, then the others in reverse order.

    broker ──answers──▶ release ──exit 0──▶ every other line ──signal──▶ stop, last first ──▶ nothing is left

The API stops first, because it finishes its answers, and workers have to write them.

One thread, one loop. Before a service is restarted, all processes that it left behind are killed (its session, and
descendants that left it), so that no engine keeps memory, a port or a lock.
"""

import os
import select
import shlex
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Self

from cli.errors import CliError
from cli.up import proc
from cli.up.guard import PASSED_ON
from cli.up.service import Service, State
from jobs.platform import processes

_ONE_REQUEST = 0.5  # seconds in which repeated signals count as one: `timeout` and `make` repeat those of a terminal


class Wakeups:
    """Receive signals as bytes on a socket, so that no signal is missed. One per process, in its main thread.

    `stops` counts requests to stop; `orphaned` becomes true when the guard has closed its end of `guard`.
    """

    def __init__(self, guard: int) -> None:
        self.stops = 0
        self.orphaned = False
        self._stopped = -_ONE_REQUEST
        self._guard = guard
        self._reading, self._writing = socket.socketpair()

    def __enter__(self) -> Self:
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in (*PASSED_ON, signal.SIGCHLD):
            signal.signal(number, _ignore_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        return self

    def __exit__(self, *_error: object) -> None:
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        self._reading.close()
        self._writing.close()

    def wait(self, seconds: float) -> None:
        """Wait for a signal, the end of the guard, or `seconds`."""
        watched = [self._reading.fileno()] if self.orphaned else [self._reading.fileno(), self._guard]
        ready, _, _ = select.select(watched, [], [], max(seconds, 0))
        if self._guard in ready and os.read(self._guard, 1) == b"":
            self.orphaned = True
        if self._reading.fileno() in ready and set(self._reading.recv(4096)) & set(PASSED_ON):
            self._count_stop()

    def _count_stop(self) -> None:
        now = time.monotonic()
        if now - self._stopped >= _ONE_REQUEST:
            self.stops += 1
            self._stopped = now


def _ignore_signal(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: Python writes the number of the signal to the socket."""


STOP_SECONDS = 20.0  # beyond NIGHTMILL_SHUTDOWN_SECONDS until SIGKILL: once for the API, once for all others together
_API = "web"  # how the names of the services begin that answer clients
_IDLE = 1.0  # seconds between checks of logs and strays
_FOLLOWING = 0.2  # the same, while logs are shown
_SWEEP = 5.0
_BROKER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Hooks:
    """The functions that the supervisor calls to report."""

    say: Callable[[str], None]
    publish: Callable[[Sequence[Service]], None]  # the process table changed
    released: Callable[[], None]  # the release step is done; services start now
    stopping: Callable[[], None]
    output: Callable[[str, str], None] | None = None  # service, line: set to follow the logs


@dataclass(frozen=True, slots=True)
class Plan:
    """The services to run, in order.

    `broker_answers` checks once whether the broker is up. `repair_broker` repairs the files of a broker that keeps
    exiting. Answers in progress have `shutdown_seconds` to end. `more` makes the services that are missing by now, each
    once.
    """

    services: Sequence[Service]
    release: Service | None = None
    broker: Service | None = None
    broker_answers: Callable[[], bool] = lambda: True
    repair_broker: Callable[[], None] = lambda: None
    shutdown_seconds: float = 0.0
    more: Callable[[], Sequence[Service]] = lambda: ()


def stop_seconds(shutdown_seconds: float) -> float:
    """Return the seconds in which a supervisor has stopped or killed everything."""
    return 2 * (shutdown_seconds + STOP_SECONDS)


class _Stopped(Exception):
    """A signal arrived during the start."""


class Supervisor:
    """Run one plan until a signal ends it."""

    def __init__(self, plan: Plan, hooks: Hooks, wakeups: Wakeups) -> None:
        self._plan = plan
        self._hooks = hooks
        self._wakeups = wakeups
        self._running: list[Service] = []  # the supervised services, in the order of their start
        self._swept = time.monotonic()
        self._looks_at = 0.0
        self._unpublished = False

    def run(self) -> int:
        """Supervise until a signal arrives or the guard ends; return the exit code, 0 or 1.

        Raises CliError when the start fails.
        """
        try:
            self._start_broker()
            self._release()
            for service in self._plan.services:
                self._start(service)
            while True:
                self._start_more()
                self._turn(self._until_next())
        except _Stopped:
            self._stop()
        finally:
            self._kill_all()
        return 1 if self._wakeups.orphaned else 0

    def _start_broker(self) -> None:
        broker = self._plan.broker
        if broker is None:
            return
        self._start(broker)
        deadline = time.monotonic() + _BROKER_SECONDS
        while not self._plan.broker_answers():
            if time.monotonic() > deadline:
                raise CliError(f"the embedded broker did not answer in {_BROKER_SECONDS:.0f} s\n{broker.log.tail(15)}")
            self._turn(0.05)

    def _release(self) -> None:
        release = self._plan.release
        if release is not None:
            release.start()
            self._running.append(release)
            while release.state is State.RUNNING:
                self._turn(_IDLE)
            self._running.remove(release)
            if release.code != 0:
                raise CliError(f"the release step failed ({release.ending}):\n{release.log.tail(30)}")
        self._hooks.released()

    def _start_more(self) -> None:
        """Start the services that have become necessary, with a look every few seconds."""
        if time.monotonic() < self._looks_at:
            return
        self._looks_at = time.monotonic() + _SWEEP
        for service in self._plan.more():
            self._hooks.say(f"starting {service.name}: {shlex.join(service.program.arguments)}")
            self._start(service)

    def _start(self, service: Service) -> None:
        self._running.append(service)
        self._launch(service)

    def _until_next(self) -> float:
        """Return the seconds until something is due."""
        interval = _FOLLOWING if self._hooks.output else _IDLE
        due = [service.due for service in self._running if service.state is State.WAITING]
        return min([interval, *(when - time.monotonic() for when in due)])

    def _turn(self, seconds: float) -> None:
        """Wait, then handle what is due. Raises _Stopped on the first request to stop."""
        self._wakeups.wait(seconds)
        self._reap()
        self._check_logs_and_strays()
        if self._wakeups.stops or self._wakeups.orphaned:
            raise _Stopped
        for service in self._running:
            if service.state is State.WAITING and service.due <= time.monotonic() and service is not self._plan.release:
                self._restart(service)

    def _restart(self, service: Service) -> None:
        if service is self._plan.broker and (service.code or 0) > 0 and service.delay > 1:
            with suppress(OSError):  # the disk is full: try again at the next start
                self._plan.repair_broker()
        self._launch(service)

    def _launch(self, service: Service) -> None:
        service.start()
        if service.refused:
            self._report_end(service)
        self._publish()

    def _report_end(self, service: Service) -> None:
        self._hooks.say(f"{service.name} ended ({service.ending}); starting it again in {service.delay:.1f} s")

    def _reap(self) -> None:
        """Wait for every child that exited, and kill the processes that it left behind."""
        while (pid := _ended_child()) is not None:
            service = next((candidate for candidate in self._running if candidate.pid == pid), None)
            if service is None:
                os.waitpid(pid, 0)  # an adopted stray
                continue
            self._end_session(pid)
            _, status = os.waitpid(pid, 0)
            service.record_end(os.waitstatus_to_exitcode(status))
            self._publish()
            if service.state is State.WAITING and service is not self._plan.release:
                self._report_end(service)

    def _end_session(self, pid: int) -> None:
        """Kill the session of a zombie. Its number cannot be reused while the zombie exists."""
        if not proc.kill_strays(self._service_pids() - {pid}, ended=pid):
            self._hooks.say(f"some processes of session {pid} cannot be killed; the supervisor ignores them")

    def _service_pids(self) -> set[int]:
        return {service.pid for service in self._running if service.pid}

    def _check_logs_and_strays(self) -> None:
        """Rotate and show logs; every five seconds kill strays."""
        output = self._hooks.output
        for service in self._running:
            service.log.rotate()
            if output:
                for line in service.log.fresh():
                    output(service.name, line)
        if self._unpublished:
            self._publish()
        if time.monotonic() - self._swept > _SWEEP:
            processes.kill(proc.strays(self._service_pids()))
            self._swept = time.monotonic()

    def _stop(self) -> None:
        """Stop the API, then the other services, the last started first and the broker last.

        Kill those that take too long; all of them on a second request, or without a guard.
        """
        if self._wakeups.orphaned:
            return
        self._hooks.stopping()
        self._hooks.say("stopping; press Ctrl-C again to stop at once")
        self._stop_in_turn([service for service in self._running if service.name.startswith(_API)])
        self._stop_in_turn([service for service in reversed(self._running) if not service.name.startswith(_API)])

    def _stop_in_turn(self, services: Sequence[Service]) -> None:
        deadline = time.monotonic() + self._plan.shutdown_seconds + STOP_SECONDS
        for service in services:
            service.stop()
            self._publish()
            while service.pid and not self._must_kill(deadline):
                self._wakeups.wait(min(0.5, deadline - time.monotonic()))
                self._reap()
            if service.pid:
                self._hooks.say(f"{service.name} is killed: it did not stop in time")
                processes.kill([service.pid])

    def _must_kill(self, deadline: float) -> bool:
        return self._wakeups.orphaned or self._wakeups.stops > 1 or time.monotonic() > deadline

    def _kill_all(self) -> None:
        """Kill every service that still runs, and the processes that it leaves behind."""
        for service in self._running:
            service.stop(signal.SIGKILL)
        deadline = time.monotonic() + 5.0
        while self._service_pids() and time.monotonic() < deadline:
            self._wakeups.wait(0.05)
            self._reap()
        proc.kill_strays(known=())

    def _publish(self) -> None:
        """Report the process table. On a full disk, try again later."""
        try:
            self._hooks.publish(self._running)
        except OSError as error:
            if not self._unpublished:
                self._hooks.say(f"the process table can't be written: {error.strerror}")
            self._unpublished = True
        else:
            self._unpublished = False


def _ended_child() -> int | None:
    """Return the pid of a child that has exited and was not waited for; None when there is none."""
    try:
        exited = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return exited.si_pid if exited else None
