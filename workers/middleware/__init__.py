"""The middleware before a worker's engines: caches, file search, context window, JSON schema, compaction."""
