"""The `nightmill` command: one module a noun, one function a verb. It speaks to the server over HTTP, except `up`."""

import jobs as _jobs  # noqa: F401 (before any library: see there)
