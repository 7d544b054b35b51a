"""Models that the workers serve."""
