"""Pipelines: their routes, and how the request of a step is checked before its job can be made."""
