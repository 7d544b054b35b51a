"""Monitoring: the routes of monitors of drift and their checks."""
