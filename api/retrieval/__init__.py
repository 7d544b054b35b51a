"""Vector stores: files, searches, indexes, sources."""
