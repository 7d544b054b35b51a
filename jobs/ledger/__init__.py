"""The ledger: states, claims, shards, the outbox, events and the audit log of jobs of every kind."""
