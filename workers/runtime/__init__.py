"""What every worker process does beside its work: heartbeat, claims, log tail, health."""
