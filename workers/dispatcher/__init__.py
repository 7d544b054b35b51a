"""The dispatcher: it publishes what is due, watches leases and runs maintenance."""
