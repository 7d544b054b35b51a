"""Promotions in workers: the decision by the gates."""
