"""Webhook delivery: the loop that sends due deliveries, and lanes that keep a slow receiver from delaying others."""
