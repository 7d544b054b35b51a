"""Every task, by name: the composition root of a worker process.

    plan(job …)    cpu.plan       read and cut the input; of several jobs where they are small
    finish(job)    cpu.plan       assemble the results
    run(job, n)    gpu.*          answer the lines of a shard, embed its documents
                   cpu.ingest     parse its documents
                   cpu.evaluate   grade its items
    purge()        cpu.ingest     make the pending removals from the vector database
    deliver()      io.webhooks    send what is due

A message carries ids; what they mean is read from SQL. A task finds its `Process` at its Celery app: `workers.__main__`
gives it one in a pool of threads, `worker_process_init` in each child of a prefork pool.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from threading import Thread

from celery import Celery, current_app, shared_task, signals

from jobs.logs import about
from jobs.platform import memory
from jobs.queues import Queue, Task
from jobs.settings import settings
from workers import lifecycle
from workers.batches.slot_scheduler import SlotScheduler
from workers.evals.python_grader import look_for_sandbox
from workers.retrieval.ingestion.purge import purge as purge_vectors
from workers.retrieval.parsing.parser import Parser, limits_of
from workers.runtime.context import Context, Pool, build
from workers.runtime.engine_host import EngineHost
from workers.webhooks import loop as webhooks

CPU_POOL = Pool("cpu", (Queue.PLAN, Queue.INGEST, Queue.EVALUATE), slots=1)


@dataclass(frozen=True, slots=True)
class Engine:
    """The engine of a process, and the scheduler of its slots."""

    host: EngineHost
    slot_scheduler: SlotScheduler


@dataclass(frozen=True, slots=True)
class Process:
    """The dependencies of a process's tasks: an engine, a parser, or neither. `trains`: the process runs trainings."""

    context: Context
    engine: Engine | None = None
    parser: Parser | None = None
    trains: bool = False

    def run(self, job_id: str, n: int) -> None:
        if self.parser is not None:
            lifecycle.run_without_engine(self.context, self.parser, job_id, n)
        elif self.engine is not None:
            lifecycle.run_in_turn(self.context, self.engine.host, self.engine.slot_scheduler, job_id, n)
        elif self.trains:
            lifecycle.train(self.context, job_id, n)

    def stop(self) -> None:
        """Let running work commit and release; Celery then waits for the tasks to return."""
        self.context.heartbeat.stop_all()
        if self.engine is not None:
            self.engine.slot_scheduler.close()


def furnish(app: Celery, process: Process) -> None:
    """Attach a `Process` to an app, for its tasks."""
    app.process = process


def _process() -> Process:
    process: Process = current_app.process
    return process


@shared_task(name=Task.PLAN.value)
def plan(*job_ids: str) -> None:
    with about(job_id=job_ids[0]) if len(job_ids) == 1 else nullcontext():
        lifecycle.plan_all(_process().context, job_ids)


@shared_task(name=Task.FINISH.value)
def finish(job_id: str) -> None:
    with about(job_id=job_id):
        lifecycle.finish(_process().context, job_id)


@shared_task(name=Task.RUN.value)
def run(job_id: str, n: int) -> None:
    with about(job_id=job_id):
        _process().run(job_id, n)


@shared_task(name=Task.PURGE.value)
def purge() -> None:
    purge_vectors(_process().context)


@shared_task(name=Task.DELIVER.value)
def deliver() -> None:
    """Deliver until nothing is due any more. A second message to the same process returns at once."""
    context = _process().context
    webhooks.run(context.db, context.config, context.worker_id, context.stop, context.timings)


@signals.worker_process_init.connect
def _child_begins(**_: object) -> None:
    """Make a child of the prefork pool a worker with a heartbeat of its own."""
    config = settings()
    memory.few_arenas()  # LanceDB's threads are many
    context = build(config, CPU_POOL)
    furnish(current_app, Process(context, parser=Parser(limits_of(config))))
    Thread(target=look_for_sandbox, args=(context.standing,), daemon=True).start()
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
