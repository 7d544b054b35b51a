"""Bring over what is kept at OpenAI, or was saved from there.

folder.py, server.py ──▶ source.py ──▶ plan.py ──▶ apply.py ──▶ outcomes.py
saved files, a server    objects       requests    this server   a row for each object, the report
"""
