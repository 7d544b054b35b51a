"""The web process: validate a request, do one transaction, answer. Workers do the rest."""

import jobs as _jobs  # noqa: F401 (before any library: see there)
