"""Requests of interactive clients and of other workers: the consumer, the engine host, responses in the background."""
