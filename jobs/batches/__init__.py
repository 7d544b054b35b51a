"""Batches: their kinds and their jobs, their input lines, their schedules, and a dry run."""
