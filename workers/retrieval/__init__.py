"""Vector stores: parsing, ingestion, sources, searches, re-ranking."""
