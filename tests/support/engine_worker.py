"""A worker with a fake engine in a process of its own, to be killed: `… DATA_DIR DATABASE_URL [STATE:N]`.

With STATE:N it kills itself when it has announced that state for the Nth time.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from jobs.queues import Queue
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support.fake_engine import FakeEngine
from tests.support.training_worker import SCALED
from workers.runtime.context import Pool, build
from workers.runtime.engine_host import EngineHost
from workers.runtime.exclusive_device import ExclusiveDevice


def main(data_dir: str, url: str, fatal: str = ":0") -> None:
    state, _, number = fatal.partition(":")
    config = Settings(data_dir=Path(data_dir), database_url=url, **SCALED)
    pool = Pool("gpu", (Queue.GENERATE,), 2, state="starting")
    context = build(config, pool, replace(Timings(), heartbeat_look=0.05))
    announce, left = context.heartbeat.announce, int(number)

    def announced() -> None:
        nonlocal left
        announce()
        left -= context.standing.state == state
        if state and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    context.heartbeat.announce = announced  # type: ignore[method-assign]
    host = EngineHost(FakeEngine(), lambda: None)
    device = ExclusiveDevice(context, host, lambda _wanted: None)
    device.await_turn()
    host.start()
    context.standing.state = "ready"
    announced()
    while not context.stop.wait(0.05):
        device.look()


if __name__ == "__main__":
    main(*sys.argv[1:])
