"""Which store a URL opens, and that a deployment keeps to its own."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.db.engine import Database
from workers.vectors.base import VectorsUnavailable
from workers.vectors.in_memory import MemoryVectors
from workers.vectors.lance import LanceVectors
from workers.vectors.open_vectors import claim_vectors, open_vectors
from workers.vectors.weaviate import WeaviateConnection, WeaviateVectors


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
    with pytest.raises(ValueError, match="not a vector store") as raised:
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
def test_grpc_defaults_to_http_host(url: str, http: tuple[str, int, bool], grpc: tuple[str, int, bool]) -> None:
    where = WeaviateConnection(url, "")._where

    assert (where.http.host, where.http.port, where.http.secure) == http
    assert (where.grpc.host, where.grpc.port, where.grpc.secure) == grpc


def test_the_first_folder_is_the_deployment_s_and_another_is_refused(db: Database, tmp_path: Path) -> None:
    claim_vectors(db, "", tmp_path / "one")
    claim_vectors(db, "", tmp_path / "one")

    with pytest.raises(VectorsUnavailable, match="NIGHTMILL_VECTORS_URL"):
        claim_vectors(db, "", tmp_path / "two")
    with pytest.raises(VectorsUnavailable):
        claim_vectors(db, "weaviate://elsewhere:8080", tmp_path)


def test_a_folder_that_both_hosts_see_is_the_same(db: Database, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "shared")

    claim_vectors(db, "", tmp_path / "shared")
    claim_vectors(db, "", tmp_path / "here")

    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["id"]


def test_a_server_is_known_by_host_and_port(db: Database, tmp_path: Path) -> None:
    claim_vectors(db, "weaviate://server:8080?grpc=server:50051", tmp_path)
    claim_vectors(db, "weaviates://server:8080/", tmp_path)

    with pytest.raises(VectorsUnavailable):
        claim_vectors(db, "weaviate://server:8081", tmp_path)


def test_concurrent_claims_leave_single_id_file(db: Database, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: claim_vectors(db, "", tmp_path / "one"), range(16)))

    assert [path.name for path in (tmp_path / "one").iterdir()] == ["id"]
