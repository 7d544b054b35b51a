"""Answers of a large, busy or broken Weaviate server are understood, from a server of a few prepared answers."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from workers.vectors.base import Store, VectorEntry, VectorsUnavailable
from workers.vectors.weaviate import WeaviateConnection, WeaviateVectors, collection_name

STORE = Store("vs_1", "proj_1", "a-model", 3)
ENTRY = VectorEntry("doc", 0, "text", "0" * 64, [1.0, 0.0, 0.0])  # type: ignore[arg-type]


class Server:
    """A client's view of one. What is deleted is told in rounds of (matches, successful, failed)."""

    def __init__(self, *rounds: tuple[int, int, int], there: tuple[bool, ...] = (True,), ready: bool = True) -> None:
        self.rounds, self.there, self.ready = list(rounds), list(there), ready
        self.created: list[str] = []
        self.written = 0
        self.collections = self.data = self

    def call(self, work: Callable[[Any], Any]) -> Any:
        return work(self)

    def is_ready(self) -> bool:
        return self.ready

    def exists(self, _name: str) -> bool:
        return self.there.pop(0)

    def create(self, name: str, **_: Any) -> None:
        self.created.append(name)
        raise ConnectionError("422")

    def use(self, _name: str) -> "Server":
        return self

    def with_tenant(self, _name: str) -> "Server":
        return self

    def insert_many(self, objects: list[Any]) -> Any:
        self.written += len(objects)
        return SimpleNamespace(errors={})

    def delete_many(self, _where: Any) -> Any:
        matches, successful, failed = self.rounds.pop(0)
        return SimpleNamespace(matches=matches, successful=successful, failed=failed)


def vectors_of(server: Any) -> WeaviateVectors:
    vectors = WeaviateVectors("weaviate://nowhere")
    vectors._client = server
    return vectors


@pytest.mark.parametrize(
    "rounds",
    [
        [(25_000, 10_000, 0), (15_000, 10_000, 0), (5_000, 5_000, 0)],
        [(25_000, 10_000, 0), (15_000, 15_000, 0)],
        [(25_000, 25_000, 0)],
        [(30_000, 25_000, 0), (5_000, 0, 0)],  # it does not move: somebody else removes the rest
    ],
)
def test_large_deletion_runs_in_rounds(rounds: list[tuple[int, int, int]]) -> None:
    server = Server(*rounds)

    assert vectors_of(server).drop(STORE, ["doc"]) == 25_000
    assert server.rounds == []


def test_entries_that_stay_are_not_taken_for_removed() -> None:
    with pytest.raises(VectorsUnavailable, match="did not delete 2 entries"):
        vectors_of(Server((5, 3, 2), (2, 2, 0))).drop(STORE, ["doc"])


def test_unready_server_fails_check() -> None:
    vectors_of(Server()).check()
    with pytest.raises(VectorsUnavailable, match="not ready"):
        vectors_of(Server(ready=False)).check()


def test_a_collection_that_another_process_makes_first_is_as_good() -> None:
    server = Server((0, 0, 0), there=(False, True))

    vectors_of(server).write(STORE, [ENTRY])

    assert (server.created, server.written) == ([collection_name(STORE)], 1)


def test_without_a_collection_nothing_is_written() -> None:
    """The server would make one of its own."""
    server = Server(there=(False, False))

    with pytest.raises(ConnectionError):
        vectors_of(server).write(STORE, [ENTRY])
    assert server.written == 0


class Connection:
    """The library's client: `ready` says what a server that misses something answers next."""

    def __init__(self, *, ready: bool) -> None:
        self.ready, self.closed = ready, 0

    def is_ready(self) -> bool:
        return self.ready

    def close(self) -> None:
        self.closed += 1


def raising(*errors: Exception | None) -> Callable[[Any], str]:
    left = list(errors)

    def work(_: Any) -> str:
        if (error := left.pop(0)) is not None:
            raise error
        return "done"

    return work


def of_weaviate(said: str) -> Exception:
    kind = type("WeaviateQueryError", (Exception,), {"__module__": "weaviate.exceptions"})
    error: Exception = kind(said)
    return error


def connected(*, ready: bool = True) -> tuple[WeaviateConnection, Connection]:
    client, connection = WeaviateConnection("weaviate://nowhere", ""), Connection(ready=ready)
    client._client = connection
    return client, connection


def test_missing_tenant_is_retried_if_server_is_ready_else_unavailable() -> None:
    missing = of_weaviate("tenant not found: vs_1")
    ready, _ = connected()
    starting, _ = connected(ready=False)

    assert ready.call(raising(missing, None)) == "done"
    with pytest.raises(VectorsUnavailable, match="not ready"):
        starting.call(raising(missing, None))


def test_broken_connection_is_closed_and_failed_query_retains_connection() -> None:
    client, connection = connected()

    with pytest.raises(VectorsUnavailable, match="no such property"):
        client.call(raising(of_weaviate("no such property")))
    assert (client._client, connection.closed) == (connection, 0)
    with pytest.raises(VectorsUnavailable, match="UNAVAILABLE"):
        client.call(raising(of_weaviate("StatusCode.UNAVAILABLE")))
    assert (client._client, connection.closed) == (None, 1)


def test_our_own_mistakes_are_not_taken_for_the_servers() -> None:
    client, connection = connected()

    with pytest.raises(ZeroDivisionError):
        client.call(raising(ZeroDivisionError("UNAVAILABLE")))
    assert (client._client, connection.closed) == (connection, 0)


def test_late_thread_does_not_close_new_connection() -> None:
    client, old = connected()
    newer = Connection(ready=True)

    def work(_: Any) -> None:
        client._client = newer  # another thread has made it anew
        raise of_weaviate("Deadline Exceeded")

    with pytest.raises(VectorsUnavailable):
        client.call(work)
    assert (client._client, old.closed, newer.closed) == (newer, 0, 0)
