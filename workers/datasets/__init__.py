"""Versions of datasets: read the rows of their sources, and write a file for each split."""
