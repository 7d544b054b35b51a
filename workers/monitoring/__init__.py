"""Monitoring in workers: texts are sampled, embedded, and compared with those of a baseline."""
