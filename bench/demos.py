"""Run a demo over a deployment of its own: `make demo-finetune` and `make demo-eval`."""

import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from bench.deployment import Deployment, deployed
from cli.errors import CliError
from cli.terminal import escaped

WIDTH = 140


def run(
    data_dir: Path,
    lines: Sequence[str],
    play: Callable[[Console, Deployment, float], list[str]],
    options: Sequence[str] = (),
) -> int:
    """Start the lines of the Procfile, call `play`, and return the exit code.

    `play` receives the moment of the start, and returns what is missing, in words.
    """
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    signal.signal(signal.SIGTERM, _exit)
    began = time.monotonic()
    console.print(f"[bold]starting Nightmill[/] {escaped(f'in {data_dir}')}")
    try:
        with tempfile.TemporaryDirectory() as folder, deployed(Path(folder), lines, options, data_dir=data_dir) as mill:
            mill.cancel_live()
            missing = play(console, mill, began)
    except CliError as trouble:
        console.print(escaped(str(trouble)))
        return 1
    console.print(f"[bold]{time.monotonic() - began:.0f} s[/] in all")
    for fault in missing:
        console.print(f"the demo is not complete: {escaped(fault)}")
    return 1 if missing else 0


def _exit(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)
