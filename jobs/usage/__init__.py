"""What a project stores, and its limit."""
