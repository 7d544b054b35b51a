"""HTTP for all resources: bodies, fields, errors, idempotency, lists, downloads."""
