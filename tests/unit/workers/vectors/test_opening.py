"""Which vector store a setting names."""

from pathlib import Path

import pytest

from workers.vectors.in_memory import MemoryVectors
from workers.vectors.lance import LanceVectors
from workers.vectors.open_vectors import open_vectors
from workers.vectors.weaviate import Client, WeaviateVectors


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("", LanceVectors),
        ("memory:", MemoryVectors),
        ("weaviate://somewhere", WeaviateVectors),
        ("weaviates://somewhere:443?grpc=elsewhere:50051", WeaviateVectors),
    ],
)
def test_a_url_says_which_store_it_is(tmp_path: Path, url: str, kind: type) -> None:
    vectors = open_vectors(url, tmp_path / "vectors", "a-key")

    assert isinstance(vectors, kind)
    assert not (tmp_path / "vectors").exists()
    vectors.close()


@pytest.mark.parametrize("url", ["http://somewhere", "lance", "memory", "weaviate:", "weaviate://", "weaviate://a:b"])
def test_other_urls_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match=r"store|[Pp]ort"):
        open_vectors(url, tmp_path)


def test_a_refused_url_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no vector store") as raised:
        open_vectors("https://user:secret@somewhere", tmp_path)

    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "http", "grpc"),
    [
        ("weaviate://a", ("a", 8080, False), ("a", 50051, False)),
        ("weaviates://a", ("a", 443, True), ("a", 50051, True)),
        ("weaviate://a:81?grpc=b:82", ("a", 81, False), ("b", 82, False)),
        ("weaviate://[::1]:81?grpc=[::2]", ("::1", 81, False), ("::2", 50051, False)),
    ],
)
def test_grpc_is_at_the_same_host_unless_said_otherwise(
    url: str, http: tuple[str, int, bool], grpc: tuple[str, int, bool]
) -> None:
    where = Client(url, "")._where

    assert (where.http.host, where.http.port, where.http.secure) == http
    assert (where.grpc.host, where.grpc.port, where.grpc.secure) == grpc
