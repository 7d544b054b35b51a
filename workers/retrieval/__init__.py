"""Vector stores: parsing, ingestion, sources, vectors, searches."""
