"""Promotions: moves of a production name to a candidate, which gates decide."""
