"""Webhooks: endpoints, deliveries, and one attempt to post one."""
