"""Answers for interactive clients: requests and their way to an engine, stored answers, the cache."""
