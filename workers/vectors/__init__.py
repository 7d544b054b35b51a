"""Vectors with their texts: the interface, and its adapters for LanceDB, Weaviate and memory."""
