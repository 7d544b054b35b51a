"""Measurements of this process. What is true of the whole deployment is read from SQL (`api.metrics`)."""

from prometheus_client import CollectorRegistry, Histogram
from starlette.types import Scope

REGISTRY = CollectorRegistry()

_REQUESTS = Histogram(
    "nightmill_http_request_seconds",
    "Time from a request's headers to its answer's, by route.",
    ("method", "route", "status"),
    registry=REGISTRY,
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS"})


def observe_request(scope: Scope, status: int, seconds: float) -> None:
    """Count one answered request under its route's template: ids would make a series each."""
    route = getattr(scope.get("route"), "path", "none")
    method = scope["method"] if scope["method"] in _METHODS else "other"
    _REQUESTS.labels(method, route, str(status)).observe(seconds)
