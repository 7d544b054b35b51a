"""Check from SQL that a process of this host works: `python -m jobs.fleet.health POOL|dispatcher`.

    a pool        one of its workers on this host had a heartbeat within a lease, and its process exists
    dispatcher    any dispatcher leads: one that waits for leadership leaves no trace in SQL

The exit status is 0 or 1, with one line that gives the reason. Run it inside the container that it checks, because
process ids and host names are valid only there.
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
POOLS = ("cpu", "evaluate", "gpu", "embed", "finetune", "tuned", "io")


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 1 or arguments[0] not in (DISPATCHER, *POOLS):
        raise SystemExit(f"say which: one of {', '.join((DISPATCHER, *POOLS))}")
    if problem := ailing(settings(), arguments[0]):
        raise SystemExit(problem)


def ailing(config: Settings, role: str) -> str:
    """Return what is wrong with this host's part in `role`; an empty text if nothing is."""
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
        here = [worker for worker in workers.everyone(session) if worker.pool == pool and _here(worker)]
    if not here:
        return f"no worker of {pool} on this host is registered"
    since = now() - max(worker.seen_at for worker in here)
    return f"no worker of {pool} has sent a heartbeat for {since:.0f} s" if since > config.lease_seconds else ""


def _here(worker: Worker) -> bool:
    return worker.host == processes.hostname() and processes.started(worker.pid) == worker.started


if __name__ == "__main__":
    main(sys.argv[1:])
