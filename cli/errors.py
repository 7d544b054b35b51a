"""What goes wrong is told in one line, with what to do about it; a traceback is never the answer to a user."""


class Trouble(Exception):
    """Ends the command with its message on standard error and exit code 1."""
