"""Batches and their dry run."""
