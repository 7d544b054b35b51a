"""`nightmill demo`: a deployment of its own, and the examples that run over it."""
