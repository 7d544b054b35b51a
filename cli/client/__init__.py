"""The client of a running server that the commands share: requests, progress, results joined with requests."""
