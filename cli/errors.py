"""The error that ends a command with one line, which says what to do. `cli.main` prints it without a traceback."""


class CliError(Exception):
    """End the command with a message on standard error and exit code 1."""
