"""Whether a process of this host does its part, as SQL knows it: `python -m jobs.fleet.health POOL|dispatcher`.

    a pool        a worker of it on this host has beaten within a lease, and its process is there
    dispatcher    somebody leads: a process that stands by shows nothing of its own

Exit status 0 or 1, and one line that says why. It is asked from inside the container whose health it is: a process
number and a host's name mean something there only.
"""

import sys
from collections.abc import Sequence

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.fleet import workers
from jobs.fleet.leadership import Leadership
from jobs.fleet.tables import Worker
from jobs.platform import processes
from jobs.settings import Settings, settings

DISPATCHER = "dispatcher"
POOLS = ("cpu", "gpu", "embed", "io")


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 1 or arguments[0] not in (DISPATCHER, *POOLS):
        raise SystemExit(f"say which: one of {', '.join((DISPATCHER, *POOLS))}")
    if trouble := ailing(settings(), arguments[0]):
        raise SystemExit(trouble)


def ailing(config: Settings, role: str) -> str:
    """What is wrong with this host's part in `role`; empty: nothing."""
    db = Database(config.database, patience=2)
    try:
        return _leaderless(config, db) if role == DISPATCHER else _silent(config, db, role)
    except DatabaseBusy:
        return "the database does not answer"
    finally:
        db.close()


def _leaderless(config: Settings, db: Database) -> str:
    return "" if Leadership(config, db).taken() else "no dispatcher leads"


def _silent(config: Settings, db: Database, pool: str) -> str:
    with db.read() as session:
        mine = [worker for worker in workers.everyone(session) if worker.pool == pool and _here(worker)]
    if not mine:
        return f"no worker of {pool} on this host is registered"
    since = now() - max(worker.seen_at for worker in mine)
    return f"no worker of {pool} has beaten for {since:.0f} s" if since > config.lease_seconds else ""


def _here(worker: Worker) -> bool:
    return worker.host == processes.hostname() and processes.started(worker.pid) == worker.started


if __name__ == "__main__":
    main(sys.argv[1:])
