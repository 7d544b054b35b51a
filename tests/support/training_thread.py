"""A worker of fine-tuning in threads of this process, beside a deployment."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jobs.queues import Queue, Task
from tests.support import training_worker
from tests.support.inline_deployment import InlineDeployment
from workers import lifecycle
from workers.runtime.context import Context


@contextmanager
def training(inline: InlineDeployment) -> Iterator[Context]:
    """Train each job of a deployment in a thread of its own for the block; yield the context of the worker."""
    worker = training_worker.context_of(inline.config)
    trainings: list[threading.Thread] = []

    def train(task: str, queue: str, arguments: Sequence[Any]) -> bool:
        if task == Task.RUN and queue == Queue.FINETUNE and not worker.stop.is_set():
            trainings.append(
                threading.Thread(target=lifecycle.run_shard, args=(worker, Queue.FINETUNE, (), *arguments))
            )
            trainings[-1].start()
        return queue == Queue.FINETUNE

    inline.elsewhere = train
    try:
        yield worker
    finally:
        worker.heartbeat.leave()
        for thread in trainings:
            thread.join(60)
        worker.db.close()
