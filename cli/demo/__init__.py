"""`nightmill demo`: a real batch on this machine, from nothing to signed webhooks, checked at the end.

system ─▶ corpus ─▶ batch (upload, create, watch) ─▶ inbox (webhooks) ─▶ results (download, check) ─▶ report
"""
