"""The queues, as the broker, the Procfile and Flower name them."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Queue(StrEnum):
    """A pool of workers listens on one or more of these; a model may name a queue of its own."""

    PLAN = "cpu.plan"  # validate input, cut shards, assemble results
    INGEST = "cpu.ingest"  # parse documents
    EVALUATE = "cpu.evaluate"  # grade items
    EMBED = "gpu.embed"
    GENERATE = "gpu.generate"
    FINETUNE = "gpu.finetune"
    TUNED = "gpu.tuned"  # answer with tuned models that have weights of their own
    WEBHOOKS = "io.webhooks"


class Task(StrEnum):
    """The work that a message requests; also the name of the Celery task."""

    PLAN = "plan"  # job: read the input, cut it into shards
    RUN = "run"  # shard: answer its lines
    FINISH = "finish"  # job: assemble output and error files
    DELIVER = "deliver"  # webhooks that are due
    PURGE = "purge"  # the pending removals from the vector database


#: The queue that shows whether a pool of `python -m workers POOL` works.
POOL_QUEUES: Final[Mapping[str, str]] = {
    "cpu": Queue.PLAN,
    "evaluate": Queue.EVALUATE,
    "gpu": Queue.GENERATE,
    "embed": Queue.EMBED,
    "finetune": Queue.FINETUNE,
    "tuned": Queue.TUNED,
    "io": Queue.WEBHOOKS,
}
#: The pools of processes that do one thing at a time, which may last, and the queues of each.
PROCESS_POOLS: Final[Mapping[str, tuple[Queue, ...]]] = {
    "cpu": (Queue.PLAN, Queue.INGEST),
    "evaluate": (Queue.EVALUATE,),
}


def sharing(queue: str) -> tuple[Queue, ...]:
    """Return the queues, `queue` among them, that share the processes of a pool; none where it is no such pool."""
    return next((queues for queues in PROCESS_POOLS.values() if queue in queues), ())


def largest_share(processes: int) -> int:
    """Return how many processes of a pool one project may take: half, rounded up. These are never all of several."""
    return (processes + 1) // 2


def command_for(queue: str, *, embeds: bool = False) -> str:
    """Return the command that runs a worker of a queue: of a pool, or of a queue that models.yaml names.

    `embeds`: the models of that queue embed or re-rank.
    """
    pool = next((pool for pool, usual in POOL_QUEUES.items() if usual == queue), None)
    return f"python -m workers {pool}" if pool else f"python -m workers {'embed' if embeds else 'gpu'} {queue}"
