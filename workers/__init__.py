"""What happens after the answer: plans, shards, engines, deliveries."""

import jobs as _jobs  # noqa: F401 (before any library: see there)
