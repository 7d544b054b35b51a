"""One deployment, one vector database."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.db.engine import Database
from workers.vectors.base import VectorsAway
from workers.vectors.open_vectors import claim_vectors


def test_the_first_folder_is_the_deployment_s_and_another_is_refused(db: Database, tmp_path: Path) -> None:
    claim_vectors(db, "", tmp_path / "one")
    claim_vectors(db, "", tmp_path / "one")

    with pytest.raises(VectorsAway, match="NIGHTMILL_VECTORS_URL"):
        claim_vectors(db, "", tmp_path / "two")
    with pytest.raises(VectorsAway):
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

    with pytest.raises(VectorsAway):
        claim_vectors(db, "weaviate://server:8081", tmp_path)


def test_all_who_come_at_once_agree(db: Database, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: claim_vectors(db, "", tmp_path / "one"), range(16)))

    assert [path.name for path in (tmp_path / "one").iterdir()] == ["id"]
