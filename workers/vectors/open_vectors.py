"""Which vector store a setting names.

(empty)                                      LanceDB, in the folder
weaviate://host:8080?grpc=host:50051         Weaviate; weaviates:// over TLS
memory:                                      this process
"""

from pathlib import Path

from workers.vectors.base import Vectors
from workers.vectors.in_memory import MemoryVectors


def open_vectors(url: str, folder: Path, api_key: str = "", owner: str = "") -> Vectors:
    """Nothing is connected to yet. Raises ValueError when the URL is none of these.

    `owner` is the deployment's name on a server that several may share.
    """
    scheme = url.partition(":")[0]
    if not url:
        from workers.vectors.lance import LanceVectors

        return LanceVectors(folder)
    if scheme in ("weaviate", "weaviates"):
        from workers.vectors.weaviate import WeaviateVectors

        return WeaviateVectors(url, api_key, owner)
    if url == "memory:":
        return MemoryVectors()
    raise ValueError(f"'{scheme}:' is no vector store; leave it empty, or begin with weaviate:// or weaviates://.")
