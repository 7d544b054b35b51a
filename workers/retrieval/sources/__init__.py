"""Documents from elsewhere into vector stores: one small port; URLs, a folder, an S3 prefix. See
`jobs.retrieval.sources`."""
