"""What the workers serve."""
