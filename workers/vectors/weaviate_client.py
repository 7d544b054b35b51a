"""The connection to a Weaviate server: made by the first call, and anew after it has failed.

The library repeats a call that meets no server for more than a minute. Here a call waits for the server until its own
time is up, and fails then; while the server is away, the calls after that fail as soon as they try to connect.
"""

import json
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

import weaviate
from weaviate.classes.init import AdditionalConfig, Auth, GrpcConfig, Timeout
from weaviate.connect import ConnectionParams
from weaviate.exceptions import (
    WeaviateClosedClientError,
    WeaviateConnectionError,
    WeaviateGRPCUnavailableError,
    WeaviateRetryError,
    WeaviateTimeoutError,
)

from workers.vectors.base import VectorsAway

CONNECT_SECONDS: Final = 3
QUERY_SECONDS: Final = 10
INSERT_SECONDS: Final = 30
HTTP_PORT: Final = 8080
GRPC_PORT: Final = 50051

#: Libraries whose own errors mean that the server does not answer, or not as it should.
_CLIENTS: Final = frozenset({"weaviate", "grpc", "httpx", "httpcore"})
_BROKEN: Final = (
    WeaviateClosedClientError,
    WeaviateConnectionError,
    WeaviateGRPCUnavailableError,
    WeaviateRetryError,
    WeaviateTimeoutError,
)
#: An error of gRPC comes wrapped into one of a query: only its text still says what it was.
_BROKEN_WORDS: Final = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "Deadline Exceeded")
_MISSING_WORDS: Final = ("tenant not found", "could not find class", "class not found")
_WAIT: Final = json.dumps({"methodConfig": [{"name": [{}], "waitForReady": True}]})
_CHANNEL: Final = [
    ("grpc.service_config", _WAIT),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
]
_SHOWN: Final = 300  # characters of what the library says

T = TypeVar("T")


class Missing(VectorsAway):
    """The collection or the tenant is not there: to a reader that is an empty store, to a writer a lost race."""


class Client:
    """One for a process: the library's own is safe to share between threads."""

    def __init__(self, url: str, api_key: str) -> None:
        self._where = _parameters(url)
        self._key = Auth.api_key(api_key) if api_key else None
        self._lock = threading.Lock()
        self._client: Any = None

    def call(self, work: Callable[[Any], T]) -> T:
        """Raises VectorsAway, and of its kind Missing.

        A server that starts answers before it has read what it holds: to it everything is missing until it is ready.
        """
        try:
            return self._once(work)
        except Missing:
            if not self._once(lambda client: client.is_ready()):
                raise VectorsAway("The vector store is not ready.") from None
            return self._once(work)

    def _once(self, work: Callable[[Any], T]) -> T:
        client: Any = None
        try:
            client = self._connected()
            return work(client)
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _CLIENTS:
                raise
            said = str(error)
            if any(words in said for words in _MISSING_WORDS):
                raise Missing("The vector store was dropped meanwhile.") from error
            if isinstance(error, _BROKEN) or any(words in said for words in _BROKEN_WORDS):
                self._forget(client)
            raise VectorsAway(f"The vector store fails: {' '.join(said.split())[:_SHOWN]}") from error

    def close(self) -> None:
        self._forget(self._client)

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                timeout = Timeout(init=CONNECT_SECONDS, query=QUERY_SECONDS, insert=INSERT_SECONDS)
                config = AdditionalConfig(timeout=timeout, grpc_config=GrpcConfig(channel_options=_CHANNEL))
                client: Any = weaviate.WeaviateClient(
                    self._where, auth_client_secret=self._key, additional_config=config, skip_init_checks=True
                )
                try:
                    client.connect()  # asks over HTTP what it is
                    client._connection._ping_grpc("sync")  # of the checks skipped; the other asks pypi.org each time
                except BaseException:
                    client.close()
                    raise
                self._client = client
            return self._client

    def _forget(self, client: Any) -> None:
        """Unless another thread has done so, and there is a newer one."""
        with self._lock:
            if client is None or client is not self._client:
                return
            self._client = None
        client.close()


def _parameters(url: str) -> Any:
    """Raises ValueError for a URL without a host, or with a port that is none."""
    parts = urlsplit(url)
    grpc = urlsplit(f"//{parse_qs(parts.query).get('grpc', [''])[0]}")
    if not parts.hostname:
        raise ValueError("The URL of the vector store names no host.")
    secure = parts.scheme == "weaviates"
    return ConnectionParams.from_params(
        http_host=parts.hostname,
        http_port=parts.port or (443 if secure else HTTP_PORT),
        http_secure=secure,
        grpc_host=grpc.hostname or parts.hostname,
        grpc_port=grpc.port or GRPC_PORT,
        grpc_secure=secure,
    )
