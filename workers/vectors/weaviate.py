"""Vectors in a Weaviate server.

    collection   one for each model and length of its vectors: Nightmill_<model>_<dimensions>_<hash>
    tenant       one for each store, made by its first write; its name has the deployment's name as a prefix
    object       one for each entry; its id is derived from document and n, so rewriting an entry gives the same object

A missing collection or tenant is an empty store; every other failure is VectorsUnavailable. After a connection error,
the next call connects anew.

The library itself repeats a call without a server for more than a minute. Here a call waits for the server until its
timeout, and then fails; while the server is unavailable, later calls fail as soon as they try to connect.
"""

import hashlib
import json
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

import numpy as np
import weaviate
from weaviate.classes.config import Configure, DataType, Property, StopwordsPreset, Tokenization, VectorDistances
from weaviate.classes.data import DataObject
from weaviate.classes.init import AdditionalConfig, Auth, GrpcConfig, Timeout
from weaviate.classes.query import Filter, MetadataQuery, Metrics
from weaviate.connect import ConnectionParams
from weaviate.exceptions import (
    WeaviateClosedClientError,
    WeaviateConnectionError,
    WeaviateGRPCUnavailableError,
    WeaviateRetryError,
    WeaviateTimeoutError,
)

from jobs.timings import Timings
from workers.vectors.base import Hit, Store, Vector, VectorEntry, VectorsUnavailable, check_vector, chunks, words

MAX_RESULTS: Final = 10_000  # of one query: the server's default QUERY_MAXIMUM_RESULTS
AT_ONCE: Final = 200  # objects in one request
PAGE: Final = 2_000  # objects in one page when a whole store is read
_IN_LIST: Final = 100  # values in one condition of a deletion or a query
_DOUBTFUL: Final = 10_000  # documents that are remembered
_PREFIX: Final = "Nightmill_"
_SHOWN: Final = ["document", "n", "text", "meta"]
_NOBODY: Final = "nobody"  # no document has this name

T = TypeVar("T")


class WeaviateVectors:
    """The vector database of a server: `weaviate://host:port?grpc=host:port`, or `weaviates` for TLS."""

    def __init__(self, url: str, api_key: str = "", owner: str = "", timings: Timings = Timings()) -> None:
        self._client = WeaviateConnection(url, api_key, timings)
        self._mark = f"{owner}-" if owner else ""
        self._lock = threading.Lock()
        self._doubtful: dict[tuple[str, str], None] = {}  # documents of stores whose last write failed

    def write(self, store: Store, entries: Sequence[VectorEntry]) -> None:
        """Write entries; first remove what a failed write may have left.

        The server does not rewrite an object that exists unchanged, although a kill may have lost it from the vector
        index.
        """
        objects = [_object(store, entry) for entry in entries]
        pairs = zip(objects, entries, strict=True)
        again = [item.uuid for item, entry in pairs if (store.id, entry.document) in self._doubtful]

        def send(client: Any) -> None:
            _make_collection(client, store)
            tenant = self._tenant(client, store)
            if again and self._tenants(client, store).exists(self._mark + store.id):
                _remove(tenant, again)
            for some in chunks(objects, AT_ONCE):
                _raise_for(tenant.data.insert_many(some).errors, len(some))
            # The server flushes the vector index before the last vectors are in it: killed now, it would have the
            # objects and never find them by their vectors. A deletion, even of nothing, flushes the index again.
            _delete(tenant, documents=[_NOBODY])

        if objects:
            try:
                self._client.call(send)
            except VectorsUnavailable:
                self._doubt({(store.id, entry.document) for entry in entries})
                raise

    def _doubt(self, documents: Collection[tuple[str, str]]) -> None:
        """Remember documents of a failed write.

        Only this process can write them again: others write under their own keys.
        """
        with self._lock:
            self._doubtful |= dict.fromkeys(documents)
            for oldest in list(islice(self._doubtful, max(len(self._doubtful) - _DOUBTFUL, 0))):
                del self._doubtful[oldest]

    def find_vectors(self, store: Store, digests: Collection[str]) -> dict[str, Vector]:
        vectors: dict[str, Vector] = {}
        nothing: dict[str, Vector] = {}
        for some in chunks(digests, _IN_LIST):
            vectors |= self._ask(store, partial(_vectors, digests=some), nothing)
        return vectors

    def drop(self, store: Store, documents: Collection[str]) -> int:
        return sum([self._ask(store, partial(_delete, documents=some), 0) for some in chunks(documents, _IN_LIST)])

    def erase(self, store: Store) -> None:
        """Do nothing: the server's compaction overwrites deleted objects, and cannot be triggered."""

    def drop_store(self, store: Store) -> None:
        def remove(client: Any) -> None:
            for name in _collections(client):
                client.collections.use(name).tenants.remove([self._mark + store.id])

        self._client.call(remove)

    def nearest(self, store: Store, vector: Vector, limit: int, documents: Collection[str] | None = None) -> list[Hit]:
        query = check_vector(store, vector)

        def search(tenant: Any, **options: Any) -> Any:
            return tenant.query.near_vector(query, return_metadata=MetadataQuery(distance=True), **options)

        return [_hit(item, 1.0 - item.metadata.distance) for item in self._search(store, search, limit, documents)]

    def matching(self, store: Store, query: str, limit: int, documents: Collection[str] | None = None) -> list[Hit]:
        query_words = words(query)

        def search(tenant: Any, **options: Any) -> Any:
            metadata = MetadataQuery(score=True)
            return tenant.query.bm25(query_words, query_properties=["text"], return_metadata=metadata, **options)

        objects = self._search(store, search, limit, documents) if query_words else []
        return [_hit(item, item.metadata.score) for item in objects]

    def counts(self, store: Store) -> dict[str, int]:
        def walk(tenant: Any) -> dict[str, int]:
            # an aggregation by document would take time with the square of their number
            every = tenant.iterator(return_properties=["document"], cache_size=PAGE)
            return dict(Counter(item.properties["document"] for item in every))

        return self._ask(store, walk, {})

    def numbers(self, store: Store, document: str) -> list[int]:
        return self._ask(store, partial(_numbers, document=document), [])

    def stores(self) -> list[str]:
        def tenants(client: Any) -> set[str]:
            return {name for each in _collections(client) for name in client.collections.use(each).tenants.get()}

        own_tenants = [name for name in self._client.call(tenants) if name.startswith(self._mark)]
        return sorted(name.removeprefix(self._mark) for name in own_tenants)

    def tend(self, store: Store) -> None:
        """Do nothing: the server maintains its indexes itself."""

    def check(self) -> None:
        if not self._client.call(lambda client: client.is_ready()):
            raise VectorsUnavailable("The vector store is not ready.")

    def close(self) -> None:
        self._client.close()

    def _search(
        self, store: Store, search: Callable[..., Any], limit: int, documents: Collection[str] | None
    ) -> list[Any]:
        if limit < 1 or (documents is not None and not documents):
            return []
        among = None if documents is None else _among("document", documents)
        options = {"limit": min(limit, MAX_RESULTS), "filters": among, "return_properties": _SHOWN}
        return self._ask(store, lambda tenant: list(search(tenant, **options).objects), [])

    def _ask(self, store: Store, work: Callable[[Any], T], nothing: T) -> T:
        """Query the store's tenant; return `nothing` if it does not exist."""
        try:
            return self._client.call(lambda client: work(self._tenant(client, store)))
        except CollectionMissing:
            return nothing

    def _tenants(self, client: Any, store: Store) -> Any:
        return client.collections.use(collection_name(store)).tenants

    def _tenant(self, client: Any, store: Store) -> Any:
        return client.collections.use(collection_name(store)).with_tenant(self._mark + store.id)


def collection_name(store: Store) -> str:
    """Return a valid name for Weaviate. The hash distinguishes models whose names differ only in other characters."""
    digest = hashlib.sha256(f"{store.model}\0{store.dimensions}".encode()).hexdigest()[:12]
    return f"{_PREFIX}{re.sub('[^0-9A-Za-z]+', '_', store.model)[:40]}_{store.dimensions}_{digest}"


def _make_collection(client: Any, store: Store) -> None:
    """Create the collection if it is missing; otherwise the server would create one without tenants."""
    name = collection_name(store)
    if client.collections.exists(name):
        return
    exact = {"tokenization": Tokenization.FIELD, "index_searchable": False}
    try:
        client.collections.create(
            name,
            vector_config=Configure.Vectors.self_provided(
                vector_index_config=Configure.VectorIndex.hnsw(distance_metric=VectorDistances.COSINE)
            ),
            multi_tenancy_config=Configure.multi_tenancy(auto_tenant_creation=True, auto_tenant_activation=True),
            inverted_index_config=Configure.inverted_index(stopwords_preset=StopwordsPreset.NONE),  # any language
            properties=[
                Property(name="document", data_type=DataType.TEXT, **exact),
                Property(name="digest", data_type=DataType.TEXT, **exact),
                Property(name="n", data_type=DataType.INT),
                Property(name="text", data_type=DataType.TEXT, tokenization=Tokenization.WORD, index_filterable=False),
                Property(name="meta", data_type=DataType.TEXT, index_searchable=False, index_filterable=False),
            ],
        )
    except Exception:  # another process may have created it
        if not client.collections.exists(name):  # it was a real failure
            raise


def _collections(client: Any) -> list[str]:
    return [name for name in client.collections.list_all(simple=True) if name.startswith(_PREFIX)]


def _object(store: Store, entry: VectorEntry) -> Any:
    properties = {
        "document": entry.document,
        "n": entry.n,
        "text": entry.text,
        "digest": entry.digest,
        "meta": json.dumps(entry.meta),
    }
    name = uuid.uuid5(uuid.NAMESPACE_OID, f"{entry.document}:{entry.n}")
    return DataObject(properties=properties, uuid=name, vector=check_vector(store, entry.vector))


def _raise_for(errors: dict[int, Any], sent: int) -> None:
    if errors:
        first = next(iter(errors.values())).message
        raise VectorsUnavailable(f"The vector store refused {len(errors)} of {sent} entries: {first}")


def _vectors(tenant: Any, digests: Collection[str]) -> dict[str, Vector]:
    """Return one vector for each digest.

    A text with thousands of copies may fill an answer; hidden ones are queried singly.
    """
    vectors, full = _some_vectors(tenant, digests, MAX_RESULTS)
    for digest in digests:
        if full and digest not in vectors:
            vectors |= _some_vectors(tenant, [digest], 1)[0]
    return vectors


def _some_vectors(tenant: Any, digests: Collection[str], limit: int) -> tuple[dict[str, Vector], bool]:
    """Return vectors by digest, and whether there may be more."""
    among = _among("digest", digests)
    answer = tenant.query.fetch_objects(filters=among, limit=limit, include_vector=True, return_properties=["digest"])
    vectors = {item.properties["digest"]: np.asarray(item.vector["default"], np.float32) for item in answer.objects}
    return vectors, len(answer.objects) >= limit


def _delete(tenant: Any, documents: Collection[str]) -> int:
    """Delete documents; the server deletes MAX_RESULTS objects at a time."""
    removed = 0
    while True:
        answer = tenant.data.delete_many(_among("document", documents))
        if answer.failed:
            raise VectorsUnavailable(f"The vector store did not delete {answer.failed} entries.")
        removed += int(answer.successful)
        if not answer.successful or answer.successful == answer.matches:
            return removed


def _remove(tenant: Any, ids: Sequence[Any]) -> None:
    for some in chunks(ids, _IN_LIST):
        answer = tenant.data.delete_many(Filter.by_id().contains_any(some))
        if answer.failed:
            raise VectorsUnavailable(
                f"The vector store did not delete {answer.failed} entries that have to be rewritten."
            )


def _numbers(tenant: Any, document: str) -> list[int]:
    """Return the numbers of a document's entries, sorted.

    Query windows of `n`, because a filtered query has at most MAX_RESULTS and no paging.
    """
    own = Filter.by_property("document").equal(document)
    answer = tenant.aggregate.over_all(filters=own, return_metrics=[Metrics("n").integer(maximum=True)])
    numbers: list[int] = []
    for start in range(0, (answer.properties["n"].maximum or 0) + 1 if answer.total_count else 0, PAGE):
        n = Filter.by_property("n")
        window = own & n.greater_or_equal(start) & n.less_than(start + PAGE)
        page = tenant.query.fetch_objects(filters=window, limit=MAX_RESULTS, return_properties=["n"])
        numbers += [int(item.properties["n"]) for item in page.objects]
    return sorted(numbers)


def _hit(item: Any, score: float) -> Hit:
    shown = item.properties
    return Hit(shown["document"], int(shown["n"]), shown["text"], json.loads(shown["meta"]), score)


def _among(column: str, values: Collection[str]) -> Any:
    return Filter.by_property(column).contains_any(list(values))


# The connection: opened by the first call, and again after a failure.

HTTP_PORT: Final = 8080
GRPC_PORT: Final = 50051

#: Libraries whose errors mean that the server does not answer, or answers wrongly.
_CLIENTS: Final = frozenset({"weaviate", "grpc", "httpx", "httpcore"})
_BROKEN: Final = (
    WeaviateClosedClientError,
    WeaviateConnectionError,
    WeaviateGRPCUnavailableError,
    WeaviateRetryError,
    WeaviateTimeoutError,
)
#: A gRPC error is wrapped into a query error: only its text tells what it was.
_BROKEN_WORDS: Final = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "Deadline Exceeded")
_MISSING_WORDS: Final = ("tenant not found", "could not find class", "class not found")
_WAIT: Final = json.dumps({"methodConfig": [{"name": [{}], "waitForReady": True}]})
_CHANNEL: Final = [
    ("grpc.service_config", _WAIT),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
]
_SHOWN_CHARACTERS: Final = 300  # characters of the library's message


class CollectionMissing(VectorsUnavailable):
    """The collection or the tenant does not exist: an empty store to a reader, a lost race to a writer."""


class WeaviateConnection:
    """The connection of one process. The library's client is safe to share between threads."""

    def __init__(self, url: str, api_key: str, timings: Timings = Timings()) -> None:
        self._where = _parameters(url)
        self._timeout = Timeout(
            init=timings.vectors_connect, query=timings.vectors_query, insert=timings.vectors_insert
        )
        self._key = Auth.api_key(api_key) if api_key else None
        self._lock = threading.Lock()
        self._client: Any = None

    def call(self, work: Callable[[Any], T]) -> T:
        """Run `work` with the client. Raises: VectorsUnavailable, and its subclass Missing.

        A starting server answers before it has loaded its data, and everything is missing until it is ready.
        """
        try:
            return self._try_call(work)
        except CollectionMissing:
            if not self._try_call(lambda client: client.is_ready()):
                raise VectorsUnavailable("The vector store is not ready.") from None
            return self._try_call(work)

    def _try_call(self, work: Callable[[Any], T]) -> T:
        client: Any = None
        try:
            client = self._connect()
            return work(client)
        except Exception as error:  # the errors of four libraries have no common class
            if type(error).__module__.partition(".")[0] not in _CLIENTS:
                raise
            message = str(error)
            if any(words in message for words in _MISSING_WORDS):
                raise CollectionMissing("The vector store was dropped meanwhile.") from error
            if isinstance(error, _BROKEN) or any(words in message for words in _BROKEN_WORDS):
                self._forget(client)
            raise VectorsUnavailable(
                f"The vector store fails: {' '.join(message.split())[:_SHOWN_CHARACTERS]}"
            ) from error

    def close(self) -> None:
        self._forget(self._client)

    def _connect(self) -> Any:
        with self._lock:
            if self._client is None:
                config = AdditionalConfig(timeout=self._timeout, grpc_config=GrpcConfig(channel_options=_CHANNEL))
                client: Any = weaviate.WeaviateClient(
                    self._where, auth_client_secret=self._key, additional_config=config, skip_init_checks=True
                )
                try:
                    client.connect()  # reads the server's metadata over HTTP
                    client._connection._ping_grpc(
                        "sync"
                    )  # one of the skipped checks; the other one queries pypi.org each time
                except BaseException:
                    client.close()
                    raise
                self._client = client
            return self._client

    def _forget(self, client: Any) -> None:
        """Close the client, unless another thread has replaced it already."""
        with self._lock:
            if client is None or client is not self._client:
                return
            self._client = None
        client.close()


def _parameters(url: str) -> Any:
    """Return the connection's parameters.

    Raises: ValueError, for a URL without a host or with an invalid port.
    """
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
