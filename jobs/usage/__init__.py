"""What a project stores, and the bound on it."""
