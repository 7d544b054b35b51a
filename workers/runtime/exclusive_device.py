"""An engine's worker makes room for a training on its device, and takes the device back afterwards.

    ready ── a training is claimed ──▶ yielding: claims end, requests in flight end ──▶ closed ── it has ended ─┐
      ▲                                                                                    ▲                   ▼
      └──────────── engines are up ◀── no ── is there another training? ── yes ───────────┴────────────── starting

A worker that is killed in any state starts again, and looks for a training before it loads an engine. What ran for a
batch is released: its answers so far are stored, and the rest runs again later.
"""

import logging
from collections.abc import Callable
from typing import Final

from jobs.errors import DatabaseBusy
from jobs.fleet import devices
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost

log = logging.getLogger(__name__)
_STARTING: Final = "starting"
_READY: Final = "ready"


class ExclusiveDevice:
    """The turns of one worker's engines and of trainings on their device. For one thread.

    `listen` starts or stops the requests of interactive clients.
    """

    def __init__(self, context: Context, host: EngineHost, listen: Callable[[bool], object]) -> None:
        self._context, self._host, self._listen = context, host, listen

    def await_turn(self) -> None:
        """Return when the engines may be loaded, or the worker is to stop."""
        self._set_state(_STARTING)
        while self._is_training():
            self._set_state(devices.CLOSED)
            self._await_end()
            self._set_state(_STARTING)  # from here on a training waits for this worker, unless it came before

    def look(self) -> None:
        """Close the engines for a training that is claimed, and open them when it has ended: return then."""
        if not self._is_training():
            return
        log.warning("device_yielded", extra={"worker": self._context.worker_id})
        self._set_state(devices.YIELDING)
        self._listen(False)
        lent = self._host.call(self._host.lend())
        while not lent.done() and not self._context.stop.wait(self._pause):
            self._context.heartbeat.release_all()
        if self._context.stop.is_set():
            return
        lent.result()
        self._set_state(devices.CLOSED)
        self._await_end()
        self.await_turn()
        if self._context.stop.is_set():
            return
        self._host.call(self._host.take_back()).result()
        self._set_state(_READY)
        self._listen(True)
        log.warning("device_taken_back", extra={"worker": self._context.worker_id})

    @property
    def _pause(self) -> float:
        return self._context.timings.heartbeat_look

    def _await_end(self) -> None:
        """Wait until no training is claimed, and end what this worker claims meanwhile."""
        while not self._context.stop.wait(self._pause) and self._is_training():
            self._context.heartbeat.release_all()

    def _is_training(self) -> bool:
        """Return whether a training is claimed on the device; while the database is away, as if there were one."""
        if self._context.stop.is_set():
            return False
        try:
            with self._context.db.read() as session:
                return devices.is_training(session, self._context.standing.host_devices)
        except DatabaseBusy:
            return self._context.standing.state != _READY

    def _set_state(self, state: str) -> None:
        self._context.standing.state = state
        self._context.heartbeat.announce()
