"""A worker process: `python -m workers cpu|evaluate|gpu|embed|finetune|tuned|io`.

    cpu        prefork, spawned children, each a worker of its own
    evaluate   the same, for grading alone
    gpu        threads over one generation engine
    embed      threads over one embedding engine
    tuned      threads over an engine for one whole tuned model at a time
    finetune   one training at a time, in a child process
    io         threads over one delivery loop, and one for each sink

`gpu QUEUE` and `embed QUEUE` serve another queue that models.yaml names.
"""

import os
import sys
from functools import partial
from typing import Final

from jobs import logs
from jobs.fleet.models_file import ANY_MODEL
from jobs.platform import memory
from jobs.queues import POOL_QUEUES, Queue
from jobs.settings import Settings, settings
from workers import NICENESS, lifecycle, tasks
from workers import app as celery_app
from workers.finetuning import capability_check, scratch, tracking
from workers.runtime.context import Pool, build
from workers.sinks import loop as sinks

#: The pools with engines.
_ENGINES: Final = ("gpu", "embed", "tuned")


def main(arguments: list[str]) -> None:
    config = settings()
    logs.configure(config.log_level)
    os.nice(NICENESS)
    pool, queue = arguments[0], arguments[1] if len(arguments) > 1 else None
    if pool in tasks.PREFORK_POOLS:
        _processes(config, tasks.PREFORK_POOLS[pool])
    elif pool == "io":
        _threads(config, Pool("io", (Queue.WEBHOOKS,), slots=1), 4)
    elif pool == "finetune":
        _threads(config, Pool("finetune", (Queue.FINETUNE,), slots=1, models=(ANY_MODEL,)), 1, trains=True)
    elif pool in _ENGINES:
        from workers import engine_process  # 66 MB that the other pools do without

        memory.limit_arenas()  # shards' threads are many, and so are LanceDB's
        engine_process.run(config, pool, queue or POOL_QUEUES[pool])
    else:
        raise SystemExit(f"unknown pool {pool!r}: one of cpu, evaluate, gpu, embed, finetune, tuned, io")


def _processes(config: Settings, pool: Pool) -> None:
    app = celery_app.build(config)
    app.conf.update(nightmill_pool=pool.name)  # its children read it
    celery_app.work(app, pool.name, pool.queues, process_count(pool, os.cpu_count() or 2))


def process_count(pool: Pool, cores: int) -> int:
    """Return the number of processes of a pool, on two cores 4 of `cpu` and 3 of `evaluate`.

    One project may take half of them, which is a process for every second core. For every queue one more is left.
    """
    return 2 * max(2, cores // 2) - 2 + len(pool.queues)


def _threads(config: Settings, pool: Pool, threads: int, *, trains: bool = False) -> None:
    if trains:
        scratch.remove_abandoned_folders(config.data_dir)
    context = build(config, pool)
    context.heartbeat.listen = partial(celery_app.consume, pool.name, pool.queues)
    if trains:
        capability_check.examine(context)
    app = celery_app.build(config, threads=True)
    train = partial(lifecycle.run_shard, context, Queue.FINETUNE, ())
    tasks.furnish(app, tasks.Runtime(context, train if trains else None))
    if trains:
        tracking.start(context)
    if pool.name == "io":
        sinks.start(context)
    celery_app.work(app, pool.name, pool.queues, threads)
    context.heartbeat.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
