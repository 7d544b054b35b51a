"""Deliver the webhooks that are due; the ring says only that there are some."""

from workers.runtime.context import Context
from workers.webhooks import loop


def deliver(context: Context) -> None:
    """Work until nothing is due any more. A second ring to the same process returns at once."""
    loop.run(context.db, context.config, context.worker_id, context.stop)
