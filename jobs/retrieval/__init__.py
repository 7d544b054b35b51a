"""Vector stores: their files, indexes, sources and searches."""
