"""Evaluations in workers: the requests to models, python graders in a sandbox, the grades, and the end of a run."""
