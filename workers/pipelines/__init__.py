"""Pipelines in workers: the release of steps."""
