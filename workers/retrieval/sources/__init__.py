"""Sync vector stores with sources: one interface, and URLs, a folder, an S3 prefix. See `jobs.retrieval.sources`."""
