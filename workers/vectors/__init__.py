"""Vectors with their text: the port, and LanceDB, Weaviate and memory behind it."""
