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


#: The pools of processes that do one thing at a time, which may last, and the queues of each.
PROCESS_POOLS: Final[Mapping[str, tuple[Queue, ...]]] = {
    "cpu": (Queue.PLAN, Queue.INGEST),
    "evaluate": (Queue.EVALUATE,),
}
