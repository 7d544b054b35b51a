"""Batches: their input lines, the job that one becomes, its quota and its retries."""
