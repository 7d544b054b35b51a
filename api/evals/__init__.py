"""Evals, their runs, and the graded items of a run."""
