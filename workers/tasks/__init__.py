"""Every task, by name: the composition root of a worker process.

    plan(job …)    cpu.plan       read and cut the input; of several jobs where they are small
    finish(job)    cpu.plan       assemble the results
    run(job, n)    gpu.*          answer the lines of a shard, embed its documents
                   cpu.ingest     parse its documents
    purge()        cpu.ingest     remove what is owed to the vector database
    deliver()      io.webhooks    send what is due

A doorbell carries ids; what they mean is read from SQL. The process's context is built when the process is: by
`workers.__main__` in a pool of threads, by `worker_process_init` in each child of a prefork pool.
"""

from contextlib import nullcontext

from celery import shared_task, signals

from jobs.logs import about
from jobs.platform import memory
from jobs.queues import Queue, Task
from jobs.settings import settings
from workers.batches.admission import Admission
from workers.batches.finishing import finish as finish_job
from workers.batches.planning_together import plan_all as plan_jobs
from workers.batches.running import run_in_turn
from workers.retrieval.ingestion.parse import parse_shard
from workers.retrieval.ingestion.purge import purge as purge_vectors
from workers.retrieval.parsing.parser import Parser, limits_of
from workers.runtime.context import Context, Pool, build
from workers.runtime.engine_host import EngineHost
from workers.tasks.deliver import deliver as deliver_due

CPU_POOL = Pool("cpu", (Queue.PLAN, Queue.INGEST, Queue.EVALUATE), slots=1)


class _Process:
    """What this process works with; set once."""

    context: Context
    host: EngineHost
    admission: Admission
    parser: Parser


def furnish(context: Context, host: EngineHost | None = None, admission: Admission | None = None) -> None:
    """Give this process's tasks what they work with."""
    _Process.context = context
    if host is not None:
        _Process.host = host
    if admission is not None:
        _Process.admission = admission


@shared_task(name=Task.PLAN.value)
def plan(*job_ids: str) -> None:
    with about(job_id=job_ids[0]) if len(job_ids) == 1 else nullcontext():
        plan_jobs(_Process.context, job_ids)


@shared_task(name=Task.FINISH.value)
def finish(job_id: str) -> None:
    with about(job_id=job_id):
        finish_job(_Process.context, job_id)


@shared_task(name=Task.RUN.value)
def run(job_id: str, n: int) -> None:
    with about(job_id=job_id):
        if parser := getattr(_Process, "parser", None):
            if parse_shard(_Process.context, parser, job_id, n):
                finish_job(_Process.context, job_id)
        else:
            run_in_turn(_Process.context, _Process.host, _Process.admission, job_id, n)


@shared_task(name=Task.PURGE.value)
def purge() -> None:
    purge_vectors(_Process.context)


@shared_task(name=Task.DELIVER.value)
def deliver() -> None:
    deliver_due(_Process.context)


@signals.worker_process_init.connect
def _child_begins(**_: object) -> None:
    """A child of the prefork pool is a worker of its own, with a beat of its own."""
    config = settings()
    memory.few_arenas()  # LanceDB's threads are many
    furnish(build(config, CPU_POOL))
    _Process.parser = Parser(limits_of(config))
    memory.settle()


@signals.worker_process_shutdown.connect
def _child_ends(**_: object) -> None:
    _Process.parser.close()
    _Process.context.keeper.leave()


@signals.worker_ready.connect
def _consuming(**_: object) -> None:
    """Celery is up; an engine that takes longer settles once more."""
    memory.settle()


@signals.worker_shutting_down.connect
def _ending(**_: object) -> None:
    """Whoever runs commits what it has and gives the rest back; Celery then waits for the tasks to return."""
    context = getattr(_Process, "context", None)
    if context is not None:
        context.keeper.stop_all()
    if admission := getattr(_Process, "admission", None):
        admission.close()
