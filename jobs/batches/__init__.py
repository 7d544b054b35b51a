"""Batches: their kinds and their jobs, their input lines, and a dry run."""
