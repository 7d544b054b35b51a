"""Monitoring: how the texts of a project differ from those of a baseline."""
