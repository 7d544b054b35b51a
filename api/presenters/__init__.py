"""Rows as the wire shows them: one module a resource, its models complete (absent values are null)."""
