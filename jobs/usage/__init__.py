"""The bytes that a project stores, and their limit."""
