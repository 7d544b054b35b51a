"""Webhook delivery: the loop that posts what is due, and the lanes that keep one receiver from delaying another."""
