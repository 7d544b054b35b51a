"""Batches: planning, running, finishing."""
