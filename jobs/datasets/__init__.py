"""Datasets: named rows in numbered versions, each split into files by hash, that trainings, evals and batches name."""
