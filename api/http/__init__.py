"""HTTP for every resource: bodies, fields, errors, idempotency, lists, downloads."""
