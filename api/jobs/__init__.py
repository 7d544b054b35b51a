"""Jobs of every kind: progress, events, results, retries."""
