"""A vector store's row as the vector database knows it."""

from jobs.retrieval.tables import VectorStore
from workers.vectors.base import Store


def store_of(row: VectorStore) -> Store:
    return Store(row.id, row.project_id, row.model, row.dimensions)
