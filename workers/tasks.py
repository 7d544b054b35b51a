"""Every task, by name: the composition root of a worker process.

    plan(job …)    cpu.plan       read and cut the input; of several jobs where they are small
    finish(job)    cpu.plan       assemble the results
    run(job, n)    gpu.*          answer the lines of a shard, embed its documents
                   cpu.ingest     parse its documents
                   cpu.evaluate   grade its items, in the pool `evaluate`
    purge()        cpu.ingest     make the pending removals from the vector database
    deliver()      io.webhooks    send what is due

A message carries ids; what they mean is read from SQL. A task finds its `Runtime` at its Celery app: `workers.__main__`
gives it one in a pool of threads, `worker_process_init` in each child of a prefork pool.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Final

from celery import Celery, current_app, shared_task, signals
from celery.utils.log import get_multiprocessing_logger

from jobs import logs
from jobs.errors import DatabaseBusy, TookTooLong
from jobs.platform import memory
from jobs.queues import PROCESS_POOLS, Queue, Task
from jobs.settings import settings
from workers import lifecycle
from workers.batches.slot_scheduler import SlotScheduler
from workers.evals.python_grader import look_for_sandbox
from workers.retrieval.ingestion.purge import purge as purge_vectors
from workers.retrieval.parsing.parser import Parser, limits_of
from workers.runtime.context import Context, Pool, build
from workers.webhooks import loop as webhooks

CPU_POOL = Pool("cpu", PROCESS_POOLS["cpu"], slots=1)
EVALUATE_POOL = Pool("evaluate", PROCESS_POOLS["evaluate"], slots=1)
#: The pools of spawned processes by name. Each child is a worker of its own.
PREFORK_POOLS: Final = {pool.name: pool for pool in (CPU_POOL, EVALUATE_POOL)}


@dataclass(frozen=True, slots=True)
class Runtime:
    """The dependencies of a process's tasks. `run` runs a shard; a process without it gets none.

    `hand_over` leaves interactive requests to other workers; a process without engines has none.
    """

    context: Context
    run: Callable[[str, int], None] | None = None
    slot_scheduler: SlotScheduler | None = None
    parser: Parser | None = None
    hand_over: Callable[[], object] | None = None

    def stop(self) -> None:
        """Let running work commit and release; Celery then waits for the tasks to return."""
        if self.hand_over is not None:
            self.hand_over()
        self.context.heartbeat.stop_all()
        if self.slot_scheduler is not None:
            self.slot_scheduler.close()


def furnish(app: Celery, process: Runtime) -> None:
    """Attach a `Runtime` to an app, for its tasks."""
    app.process = process


def _process() -> Runtime:
    process: Runtime = current_app.process
    return process


@contextmanager
def handling(job_id: str | None = None) -> Iterator[None]:
    """Handle a message: name its job in the logs; while the database is away, leave the work to a later message."""
    with logs.about(job_id=job_id):
        try:
            yield
        except TookTooLong:  # it would take too long the next time as well
            raise
        except DatabaseBusy:
            lifecycle.database_away.warn()


@shared_task(name=Task.PLAN.value)
def plan(*job_ids: str) -> None:
    with handling(job_ids[0] if len(job_ids) == 1 else None):
        lifecycle.plan_all(_process().context, job_ids)


@shared_task(name=Task.FINISH.value)
def finish(job_id: str) -> None:
    with handling(job_id):
        lifecycle.finish(_process().context, job_id)


@shared_task(name=Task.RUN.value)
def run(job_id: str, n: int) -> None:
    with handling(job_id):
        if (run_shard := _process().run) is not None:
            run_shard(job_id, n)


@shared_task(name=Task.PURGE.value)
def purge() -> None:
    with handling():
        purge_vectors(_process().context)


@shared_task(name=Task.DELIVER.value)
def deliver() -> None:
    """Deliver until nothing is due any more. A second message to the same process returns at once."""
    context = _process().context
    with handling():
        webhooks.run(context.db, context.config, context.worker_id, context.stop, context.timings)


@signals.setup_logging.connect
def _configure_logs(**_: object) -> None:
    """Log as JSON, also in each spawned child: where this signal has a receiver, Celery adds no handlers of its own."""
    level = settings().log_level
    logs.configure(level)
    root = logging.getLogger()
    root.setLevel(max(root.level, logging.WARNING))  # Celery reports each message that comes, and that is done
    for package in ("jobs", "workers"):
        logging.getLogger(package).setLevel(level)
    of_pool = get_multiprocessing_logger()
    of_pool.handlers.clear()  # billiard gives one to each child
    of_pool.propagate = True


@signals.worker_process_init.connect
def _child_begins(**_: object) -> None:
    """Make a child of the prefork pool a worker with a heartbeat of its own."""
    config = settings()
    memory.limit_arenas()  # LanceDB's threads are many
    pool = PREFORK_POOLS[current_app.conf.nightmill_pool]
    context = build(config, pool)
    if pool is EVALUATE_POOL:
        furnish(current_app, Runtime(context, partial(lifecycle.run_shard, context, Queue.EVALUATE, ())))
        Thread(target=look_for_sandbox, args=(context.standing, context.stop), daemon=True).start()
    else:
        parser = Parser(limits_of(config))
        parse = partial(lifecycle.run_shard, context, Queue.INGEST, (parser,))
        furnish(current_app, Runtime(context, parse, parser=parser))
    memory.freeze()


@signals.worker_process_shutdown.connect
def _child_ends(**_: object) -> None:
    process = _process()
    if process.parser is not None:
        process.parser.close()
    process.context.heartbeat.leave()


@signals.worker_ready.connect
def _consuming(**_: object) -> None:
    """Announce the worker when Celery is up, unless its engine still loads."""
    memory.freeze()


@signals.worker_shutting_down.connect
def _ending(**_: object) -> None:
    if process := getattr(current_app, "process", None):  # the parent of a prefork pool has none
        process.stop()
