"""Prompts: stored instructions and messages with variables, in numbered versions that requests name."""
