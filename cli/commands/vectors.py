"""`nightmill vectors`: compare the vector database with the SQL database."""

from typing import Annotated

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import HostOptions
from cli.terminal import say

app = Group("Check the vector database.")


@app.callback()
def group() -> None:
    """Check the vector database."""


@app.command()
def verify(
    options: HostOptions,
    repair: Annotated[
        bool, typer.Option("--repair", help="Add again what is missing, and remove what belongs to no file.")
    ] = False,
) -> None:
    """Compare the vectors and texts of every store with its files. Exit code 1 if they differ and are not repaired."""
    from cli.up.effective import effective, opened
    from jobs.programs import DIFFERS, verify_vectors

    with opened(options.data_dir):
        config = effective(data_dir=options.data_dir)
    done = verify_vectors(config.data_dir.absolute(), repair=repair)
    report = {"differs": done.returncode == DIFFERS, "findings": done.stdout.splitlines()}
    options.show(report, *done.stdout.splitlines())
    for line in done.stderr.splitlines():
        say(line, err=True)
    if done.returncode == DIFFERS:
        raise CliError("the vectors are not what the database says; `nightmill vectors verify --repair` repairs it")
    if done.returncode:
        raise CliError("the vectors could not be compared")
