"""Evaluations in workers: python graders run in the sandbox."""
