"""`nightmill vectors`: is what can be searched exactly what the database says?"""

import os
import subprocess
import sys
from typing import Annotated

import typer

from cli.errors import Trouble
from cli.options import DataDir
from cli.terminal import say
from cli.up.effective import effective, opened
from cli.up.procfile import CHECKOUT

_DIFFERS = 3  # of `workers.retrieval.verification`; 1 is that of whatever else goes wrong
app = typer.Typer(help="Check the vector database.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Check the vector database."""


@app.command()
def verify(
    data_dir: DataDir = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Bring in again what is missing, remove what belongs to no file.")
    ] = False,
) -> None:
    """Compare vectors and texts with the files of every store. Exit code 1 if they differ and nothing is done."""
    with opened(data_dir):
        config = effective(data_dir=data_dir)
    command = [sys.executable, "-m", "workers.retrieval.verification", *(["--repair"] if repair else [])]
    environment = {**os.environ, "NIGHTMILL_DATA_DIR": str(config.data_dir.absolute())}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 (our own module)
    for line in done.stdout.splitlines():
        say(line)
    for line in done.stderr.splitlines():
        say(line, err=True)
    if done.returncode == _DIFFERS:
        raise Trouble("the vectors are not what the database says; `nightmill vectors verify --repair` mends it")
    if done.returncode:
        raise Trouble("the vectors could not be compared")
