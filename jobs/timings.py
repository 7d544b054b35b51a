"""The waits, looks and patience that are no settings: nobody tunes them, and tests shorten them.

A process's context (`workers.runtime.context.Context`, `api.deps.Services`) holds one `Timings`; what has no context
takes it, or the one number that it needs, as an argument. A test passes `replace(Timings(), field=...)`; no test
patches a constant. All values are seconds. A field stands below the room that reads it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds between looks, until something counts as gone, and at most for one piece of work."""

    # workers.inference: requests of interactive clients
    interactive_alive: float = 2.0  # between the signs of life of a request that is being answered
    interactive_look: float = 0.25  # between looks at whether clients are still there
    interactive_take: float = 1.0  # that Redis may wait for the next request of a queue
    interactive_retry: float = 1.0  # until a server that was away is asked again
    interactive_limit_look: float = 0.05  # between looks at a limit that is reached and may rise

    # workers.retrieval
    sync_shift: float = 30.0  # of one sync in one go: others wait for this process
    source_settled: float = 2.0  # a file that changed so lately may change again without looking different

    # workers/lifecycle
    storage_retry: float = 10.0  # before what could not be stored is tried again
    database_retry: float = 5.0  # before a database that could not be read is read again
    admission_retry: float = 1.0  # before a shard for which there is no room is published again
