"""The base of every worker process: heartbeat, claims, engines and their health, the log tail."""
