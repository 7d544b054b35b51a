"""The keys of a project, and its audit log."""
