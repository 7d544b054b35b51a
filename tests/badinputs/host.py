"""The processes that bad inputs are sent to: `python -m tests.badinputs.host web` and `… mill`.

    web     the web process as `python -m api` starts it
    mill    dispatcher, planner, runner, finisher, the delivery loop and an ingester over the fake engine, in one
            process; documents are read in its child, as in life

They are configured by the environment, as the product is. A test chooses four things more: the ports that a webhook
may go to (the canary's among them, so that nothing but the address keeps a request from it), what the name server
says, one address that is taken for a public one, and how long a connection that stands still is borne.
"""

import fcntl
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

from fastapi import FastAPI

import api.server
from api.app import build
from api.http.middleware import BodyLimit
from jobs import logs
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.platform import url_guard
from jobs.settings import Settings, settings
from jobs.timings import Timings
from tests.badinputs.ingester import Ingester
from tests.support.inline_deployment import running
from workers.runtime.context import Pool
from workers.runtime.context import build as build_worker
from workers.webhooks import loop

PUBLIC = "93.184.215.14"
SITE = "127.0.0.2"  # taken for public
#: What each name is at its first, second, … lookup; the last one stays. An empty answer: there is no such name.
NAMES: Mapping[str, Sequence[Sequence[str]]] = {
    "inside.example.com": [["127.0.0.1"]],
    "inside6.example.com": [["::1"]],
    "mapped.example.com": [["::ffff:127.0.0.1"]],
    "nat64.example.com": [["64:ff9b::7f00:1"]],
    "mixed.example.com": [[PUBLIC, "127.0.0.1"]],
    "metadata.example.com": [["169.254.169.254"]],
    "rebind.example.com": [[PUBLIC], ["127.0.0.1"]],
    "rebind6.example.com": [[PUBLIC], ["::1"]],
    "rebind-mixed.example.com": [[PUBLIC], [PUBLIC, "127.0.0.1"]],
    "late.example.com": [[], ["127.0.0.1"]],
    "site.example.com": [[SITE]],
    "moves.example.com": [[SITE], ["127.0.0.1"]],
    "moves6.example.com": [[SITE], ["::1"]],
    "moves-in-part.example.com": [[SITE], [SITE, "127.0.0.1"]],
}


class NameServer:
    """Answers out of NAMES. Lookups are counted in a file, since two processes make them."""

    def __init__(self, folder: Path, system: url_guard.Resolve) -> None:
        self._path = folder / "lookups"
        self._system = system

    def __call__(self, host: str, port: int) -> Sequence[url_guard.Address]:
        name = host.partition("-at-")[2] or host  # a name of one's own for each that is to begin at the beginning
        if name not in NAMES:
            return self._system(host, port)
        answers = NAMES[name]
        texts = answers[min(self._count(host), len(answers)) - 1]
        if not texts:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [ip_address(text) for text in texts]

    def _count(self, host: str) -> int:
        with self._path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(f"{host}\n")
            file.flush()
            file.seek(0)
            return file.read().split().count(host)


def web(config: Settings) -> None:
    app = build(config)
    _hurry(app)
    api.server.server(app, config).run()


def _hurry(app: FastAPI) -> None:
    """Give up what stands still after as long as the test says."""
    idle, head = os.environ.get("BAD_INPUTS_IDLE_SECONDS"), os.environ.get("BAD_INPUTS_HEAD_SECONDS")
    if head:
        services = app.state.services
        services.timings = replace(services.timings, head_patience=float(head))
    if idle:
        [limit] = [one for one in app.user_middleware if one.cls is BodyLimit]
        limit.kwargs["idle_seconds"] = float(idle)


def inline(config: Settings) -> None:
    stop = _stopped_by_signal()
    db = Database(config.database, patience=10)
    calm = {"shard_lines": 256, "lease_seconds": 20.0, "redelivery_seconds": 2.0}
    with running(db, config.data_dir, timings=Timings(source_fetch=3.0), **calm) as deployment:
        context = build_worker(config, Pool("io", (), 1))
        arguments = (context.db, config, context.worker_id, stop, replace(Timings(), deliveries_idle=float("inf")))
        sender = threading.Thread(target=loop.run, args=arguments)
        sender.start()
        ingester = Ingester(config)
        deployment.elsewhere = ingester.handle
        while not stop.wait(0.05):
            with suppress(DatabaseBusy):  # it goes on at the next tick, as in life
                deployment.dispatcher.tick()
            for error in (*deployment.errors, *ingester.errors):
                raise error
        sender.join()
        ingester.close()
        context.heartbeat.leave()


def _stopped_by_signal() -> threading.Event:
    stop = threading.Event()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    return stop


def _with_site(permitted: Callable[..., bool]) -> Callable[..., bool]:
    def judge(address: url_guard.Address, *, allow_private: bool) -> bool:
        return str(address) == SITE or permitted(address, allow_private=allow_private)

    return judge


ROLES: Mapping[str, Callable[[Settings], None]] = {"web": web, "inline": inline}


def main(role: str) -> None:
    config = settings()
    logs.configure(config.log_level)
    url_guard.PORTS = frozenset(url_guard.PORTS | set(json.loads(os.environ["BAD_INPUTS_PORTS"])))
    url_guard.permitted = _with_site(url_guard.permitted)
    url_guard.system_resolve = NameServer(config.data_dir, url_guard.system_resolve)
    ROLES[role](config)


if __name__ == "__main__":
    main(sys.argv[1])
