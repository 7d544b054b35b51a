"""Jobs of all kinds: progress, events, results, retries."""
