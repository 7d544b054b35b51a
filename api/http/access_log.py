"""The access log: one line for each request when it has ended, so that the id of a request leads to what became of it.

The line has the template of the route and no query, no address and no header: these may hold what no log may.
"""

import logging

from starlette.types import Scope

from api.health.metrics import method_and_route

log = logging.getLogger(__name__)
#: Asked for again and again by load balancers and monitoring.
_QUIET = frozenset({"/livez", "/readyz", "/statusz", "/metrics"})


def log_request(scope: Scope, status: int | None, seconds: float) -> None:
    """Log a request that took `seconds` to its last byte. `status` is None where its client left before the answer."""
    if scope["path"] in _QUIET:
        return
    method, route = method_and_route(scope)
    caller = scope["state"].get("caller")
    fields = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
    log.info("request", extra={**fields, "project": caller.project_id if caller else None})
