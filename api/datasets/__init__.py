"""Datasets: their routes, and those of their versions."""
