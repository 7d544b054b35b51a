"""Benchmarks. Each is a module with a `main`, run as `python -m bench NAME`."""
