"""Engines of models that read and do not write, on sentence-transformers: embeddings and re-ranking."""
