"""The workers: they plan, run and finish jobs, host engines, send deliveries, and dispatch."""

import jobs as _jobs  # noqa: F401 (before any library: see there)
