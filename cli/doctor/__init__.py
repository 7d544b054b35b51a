"""`nightmill doctor`: what is installed, reachable and misconfigured, and why a job stands still."""
