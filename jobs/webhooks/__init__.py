"""Webhooks: endpoints, deliveries, and single attempts to send them."""
