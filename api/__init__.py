"""Intake: validate, one transaction, answer. What happens after the answer is `workers`'."""

import jobs as _jobs  # noqa: F401 (before any library: see there)
