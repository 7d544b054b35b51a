"""Every error a caller can meet, as one tree. Status, type and the usual message belong to the class.

NightmillError (500 server_error)
├── InvalidRequest (400 invalid_request_error)
│   └── Expired (400)
├── Unauthenticated (401)
├── PermissionDenied (403)
│   └── MissingPermission (403)
├── NotFound (404)
├── RequestTimeout (408)
├── Conflict (409)
│   ├── Contended (409)
│   └── InFlight (409)
├── Gone (410)
├── PayloadTooLarge (413)
├── UnsupportedMedia (415)
├── IdempotencyMismatch (422)
├── SpendLimitReached (429 insufficient_quota)
├── TooManyRequests (429 rate_limit_error)
│   └── RateLimitReached (429 requests, tokens)
├── Unavailable (503)
│   ├── BrokerFull (503)
│   ├── DatabaseBusy (503)
│   ├── NoWorker (503)
│   │   └── ModelLoading (503)
│   ├── LookupsBusy (503)
│   ├── NotBegun (503, to interactive clients)
│   ├── Overloaded, StreamsUnavailable, WorkerLost (503, to interactive clients)
│   └── StorageUnavailable (503)
├── StorageFull (507)
│   └── ProjectFull (507)
└── ClaimLost (500, inside workers: a newer claim exists)
"""

import math
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Literal


class NightmillError(Exception):
    """An error that a caller can meet. `text` is its message where the raiser gives none."""

    text: str = "The server had an error while processing your request."
    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    type: str = "server_error"
    code: str | None = None
    retryable: bool = False
    retry_after: int | None = None  # seconds, sent as Retry-After
    headers: Mapping[str, str] = MappingProxyType({})  # of the answer, besides those of all errors

    def __init__(self, message: str | None = None, *, param: str | None = None, code: str | None = None) -> None:
        self.message = message or self.text
        super().__init__(self.message)
        self.param = param
        self.code = code or self.code


class InvalidRequest(NightmillError):
    """A request that is not valid."""

    text = "The request is not valid."
    status = HTTPStatus.BAD_REQUEST
    type = "invalid_request_error"


class Expired(InvalidRequest):
    """A request for an object whose lifetime has ended."""

    text = "This object has expired."
    code = "expired"


class Unauthenticated(NightmillError):
    """A request without a valid API key."""

    text = "Incorrect API key provided. Make a key with `nightmill keys create`."
    status = HTTPStatus.UNAUTHORIZED
    type = "invalid_request_error"
    code = "invalid_api_key"


class PermissionDenied(NightmillError):
    """A request that the key does not permit."""

    text = "This key may not do that."
    status = HTTPStatus.FORBIDDEN
    type = "invalid_request_error"
    code = "permission_denied"


class MissingPermission(PermissionDenied):
    """A request that takes a permission which the key, or its owner, does not have."""

    code = "missing_scope"

    def __init__(self, permission: str) -> None:
        super().__init__(f"You have insufficient permissions for this operation. Missing scopes: {permission}.")


class NotFound(NightmillError):
    """A request for an object that does not exist, or belongs to another project."""

    text = "There is no such object."
    status = HTTPStatus.NOT_FOUND
    type = "invalid_request_error"
    code = "not_found"


class RequestTimeout(NightmillError):
    """A request whose body was not received in time."""

    text = "The request's body stopped arriving."
    status = HTTPStatus.REQUEST_TIMEOUT
    type = "invalid_request_error"
    code = "request_timeout"
    retryable = True


class Conflict(NightmillError):
    """A request that the state of the object does not allow."""

    text = "The object's state does not allow this."
    status = HTTPStatus.CONFLICT
    type = "invalid_request_error"


class Contended(Conflict):
    """A request whose object is being changed by others."""

    text = "Others are changing this object at the same moment."
    code = "contended"
    retryable = True
    retry_after = 1


class InFlight(Conflict):
    """A repeated request whose first one is not answered yet."""

    text = "A request with this Idempotency-Key is still being processed."
    code = "idempotency_key_in_use"
    retryable = True
    retry_after = 1


class Gone(NightmillError):
    """A request for what has been removed."""

    text = "This has been removed."
    status = HTTPStatus.GONE
    type = "invalid_request_error"


class PayloadTooLarge(NightmillError):
    """A request with too many bytes."""

    text = "The request is too large."
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    type = "invalid_request_error"
    code = "request_too_large"


class UnsupportedMedia(NightmillError):
    """A request in a format that is not supported."""

    text = "The Content-Type or Content-Encoding of this request is not supported."
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    type = "invalid_request_error"
    code = "unsupported_media_type"


class IdempotencyMismatch(NightmillError):
    """A request with the Idempotency-Key of a different request."""

    text = "This Idempotency-Key was used with another request."
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    type = "invalid_request_error"
    code = "idempotency_key_mismatch"


class TooManyRequests(NightmillError):
    """A request beyond a rate limit."""

    text = "Too many requests."
    status = HTTPStatus.TOO_MANY_REQUESTS
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retryable = True
    retry_after: int | None = 5


class RateLimitReached(TooManyRequests):
    """A request beyond the project's rate limit for its model.

    `kind` says what there were too many of. `wait` is the time in seconds until the request fits; None if it never
    does. `headers` describe the limits.
    """

    text = "Rate limit reached."

    def __init__(
        self, message: str, *, kind: Literal["requests", "tokens"], wait: float | None, headers: Mapping[str, str]
    ) -> None:
        super().__init__(message)
        self.type, self.headers, self.retryable = kind, dict(headers), wait is not None
        self.retry_after = None
        if wait is not None:
            self.retry_after = max(1, math.ceil(wait))
            self.headers["retry-after-ms"] = str(max(1, math.ceil(wait * 1000)))


class SpendLimitReached(NightmillError):
    """A request of a project that may spend no more this month: no wait of seconds is a help."""

    text = "The spend limit of this month is reached."
    status = HTTPStatus.TOO_MANY_REQUESTS
    type = "insufficient_quota"
    code = "project_spend_limit_exceeded"


class TooManyLiveJobs(NightmillError):
    """A new job of a project that has as many live jobs of its kind as it may have: waiting a moment is no help."""

    text = "The project has too many jobs of this kind that have not ended."
    status = HTTPStatus.TOO_MANY_REQUESTS
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Unavailable(NightmillError):
    """A request that cannot be answered now; the same request may succeed later."""

    text = "The service cannot answer now."
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "unavailable"
    retryable = True
    retry_after = 2


class BrokerFull(Unavailable):
    """The Redis server of interactive requests is out of memory."""

    text = "The server that carries requests and answers has no memory left for them. Ask again in a moment."
    code = "broker_full"
    retry_after = 5


class DatabaseBusy(Unavailable):
    """The database did not answer."""

    text = "The database is busy or not reachable."
    code = "database_unavailable"


class TookTooLong(DatabaseBusy):
    """The database cancelled a statement at its timeout."""

    text = "The database has ended a statement that took too long, as it would the next time."


class NoWorker(Unavailable):
    """A request for a model that no live worker serves."""

    text = "No live worker serves this model."
    code = "no_worker"


class ModelLoading(NoWorker):
    """A request for a model that is loading."""

    text = "The model is loading. Ask again in a moment."
    code = "model_loading"
    retry_after = 10


class Overloaded(Unavailable):
    """A request for a model with a full queue."""

    text = "Too many clients wait for this model. Ask again in a moment."
    code = "too_many_waiting"


class StreamsUnavailable(Unavailable):
    """The Redis server of interactive requests did not answer."""

    text = "The Redis server that carries the requests of interactive clients cannot be reached."
    code = "streams_unavailable"


class WorkerLost(Unavailable):
    """An interactive request whose worker ended before the answer."""

    text = "The worker that answered was lost. Ask again."
    code = "worker_lost"


class NotBegun(Unavailable):
    """An interactive request whose answer has not begun in the time that an alias gives its models."""

    text = "The model did not begin to answer in time. Ask again."
    code = "answer_not_begun"


class LookupsBusy(Unavailable):
    """A request with a URL while too many names are being resolved."""

    text = "Too many names are being looked up: a name server may not answer. Ask again in a moment."
    code = "name_lookups_busy"


class StorageUnavailable(Unavailable):
    """The file storage did not answer."""

    text = "The file storage cannot be reached."
    code = "storage_unavailable"


class StorageFull(NightmillError):
    """The storage has no room for a write."""

    text = "There is not enough free space."
    status = HTTPStatus.INSUFFICIENT_STORAGE
    code = "insufficient_storage"
    retryable = True
    retry_after: int | None = 60


class ProjectFull(StorageFull):
    """A write beyond the project's storage limit."""

    text = "The project stores as many bytes as it may."
    code = "project_storage_full"
    retryable = False
    retry_after = None


class ClaimLost(NightmillError):
    """A write under a claim that was revoked, inside workers."""

    text = "A newer claim on this work exists; what the former holder produced is dropped."
