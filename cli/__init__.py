"""The `nightmill` command. It speaks to the server over HTTP; `up` starts the server."""

import jobs as _jobs  # noqa: F401 (before any library: see there)
