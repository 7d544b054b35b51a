"""Batches, their dry run and their schedules."""
