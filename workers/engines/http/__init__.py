"""OpenAI-compatible servers behind URLs as one engine."""
