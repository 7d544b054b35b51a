"""Open the vector database of a deployment, and ensure that all hosts use the same one.

    (empty)                                      LanceDB, in the folder
    weaviate://host:8080?grpc=host:50051         Weaviate; weaviates:// over TLS
    memory:                                      this process

A deployment has one vector database. Its name is stored in SQL, so that a host with another database fails instead of
writing vectors that no other host sees. The name of a folder is the id in its file `id`: a shared folder has the same
id on all hosts.
"""

import os
from pathlib import Path
from typing import Final

from jobs.db.engine import Database, insert_into
from jobs.fleet.tables import Meta
from jobs.ids import new_id
from jobs.retrieval.tables import VectorStore
from jobs.timings import Timings
from workers.vectors.base import Store, Vectors, VectorsUnavailable
from workers.vectors.in_memory import MemoryVectors


def open_vectors(url: str, folder: Path, api_key: str = "", owner: str = "", timings: Timings = Timings()) -> Vectors:
    """Return the vector database of a URL, without connecting.

    Raises: ValueError, for an unknown scheme.
    """
    scheme = url.partition(":")[0]
    if not url:
        from workers.vectors.lance import LanceVectors

        return LanceVectors(folder, timings)
    if scheme in ("weaviate", "weaviates"):
        from workers.vectors.weaviate import WeaviateVectors

        return WeaviateVectors(url, api_key, owner, timings)
    if url == "memory:":
        return MemoryVectors()
    raise ValueError(f"'{scheme}:' is not a vector store; leave it empty, or begin with weaviate:// or weaviates://.")


_KEY: Final = "vectors"
_DEPLOYMENT: Final = "deployment"


def deployment_name(db: Database) -> str:
    """Return this deployment's name, created by the first caller."""
    with db.read() as session:
        meta = session.get(Meta, _DEPLOYMENT)
    if meta is None:
        with db.write() as session:
            insert = insert_into(session, Meta).values(key=_DEPLOYMENT, value=new_id("nm")[:14])
            session.execute(insert.on_conflict_do_nothing())
            meta = session.get_one(Meta, _DEPLOYMENT)
    return meta.value


def claim_vectors(db: Database, url: str, folder: Path) -> None:
    """Record the vector database as the deployment's, or check that it is.

    Raises: VectorsUnavailable, for another one.
    """
    name = _address(url) if url else _id_of(folder)
    with db.read() as session:
        meta = session.get(Meta, _KEY)
    if meta is None:
        with db.write() as session:
            session.execute(insert_into(session, Meta).values(key=_KEY, value=name).on_conflict_do_nothing())
            meta = session.get_one(Meta, _KEY)
    if meta.value != name:
        raise VectorsUnavailable(
            "this deployment's vectors are elsewhere: several hosts need one server (NIGHTMILL_VECTORS_URL), and a "
            "deployment that moves to another needs its files brought in anew (nightmill vectors verify --repair)"
        )


def _address(url: str) -> str:
    """Return host and port of a URL; scheme and credentials may change."""
    return url.partition("//")[2].partition("?")[0].rstrip("/").rpartition("@")[2] or url


def _id_of(folder: Path) -> str:
    """Return the folder's id, created if necessary.

    Of two processes that create it at once, the later takes the other's id.
    """
    id_file = folder / "id"
    if not id_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".id-{os.getpid()}-{new_id('')}"
        with temporary.open("w") as file:
            file.write(new_id("vdb_"))
            file.flush()
            os.fsync(file.fileno())
        try:
            id_file.hardlink_to(temporary)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return id_file.read_text()


def store_of(row: VectorStore) -> Store:
    return Store(row.id, row.project_id, row.model, row.dimensions)
