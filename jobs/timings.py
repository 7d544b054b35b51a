"""The waits, looks and patience that are no settings: nobody tunes them, and tests shorten them.

A process's context (`workers.runtime.context.Context`, `api.deps.Services`) holds one `Timings`; what has no context
takes it, or the one number that it needs, as an argument. A test passes `replace(Timings(), field=...)`; no test
patches a constant. All values are seconds. A field stands below the room that reads it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds between looks, until something counts as gone, and at most for one piece of work."""
