"""`python -m cli` is the `nightmill` command, for a checkout that is not installed."""

from cli.main import app

if __name__ == "__main__":
    app()
