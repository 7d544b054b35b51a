"""Prompts: their routes, and how a request that names one becomes a request without."""
