"""Schedules: created, listed, paused, resumed and deleted."""
