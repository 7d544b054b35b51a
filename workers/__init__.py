"""The workers: they plan, run and finish jobs, host engines, send deliveries, and dispatch."""

from typing import Final

import jobs as _jobs  # noqa: F401 (before any library: see there)

#: The niceness of worker processes: the API of their machine goes first.
NICENESS: Final = 10
