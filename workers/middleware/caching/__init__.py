"""What was computed before is given again: see `engine`, which stands before a worker's engines."""
