"""Run an example over a deployment of its own: `make demo-eval`, `demo-finetune`, `demo-migrate` and `demo-release`.

python -m bench.demos evaluation --rows 12      other options than these here are those of examples/evaluation.py
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bench.deployment import deployed
from cli.demo.command import run_example
from cli.errors import CliError

#: The lines of the Procfile that an example needs, by its name.
_LINES = {
    "evaluation": ("web", "dispatcher", "cpu", "evaluate", "gpu"),
    "migration": ("web", "dispatcher", "cpu", "evaluate", "gpu"),
    "fine_tuning": ("web", "dispatcher", "cpu", "gpu", "finetune"),
    "release": ("web", "dispatcher", "cpu", "evaluate", "gpu", "finetune", "io"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.demos", description="run an example")
    parser.add_argument("example", choices=sorted(_LINES))
    parser.add_argument("--data-dir", type=Path, default=Path(".nightmill-demo"))
    parser.add_argument("--engine-url", action="append", default=[], help="use an OpenAI-compatible server")
    parser.add_argument("--no-vllm", action="store_true", help="start no vLLM here")
    parser.add_argument("--patience", type=float, default=3600.0, help="give up after this many seconds")
    options, others = parser.parse_known_args(arguments)
    words = [word for url in options.engine_url for word in ("--engine-url", url)] + ["--no-vllm"] * options.no_vllm
    signal.signal(signal.SIGTERM, _exit)
    began = time.monotonic()
    print(f"starting Nightmill in {options.data_dir}", flush=True)
    lines, data_dir = _LINES[options.example], options.data_dir
    receives = {"NIGHTMILL_WEBHOOK_ALLOW_PRIVATE": "true"}  # an example takes its webhooks on this machine
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            deployed(Path(folder), lines, words, receives, data_dir) as inline,
        ):
            inline.cancel_live()
            print(f"the API answers after {time.monotonic() - began:.0f} s", flush=True)
            run_example(inline.system, options.example, others, began + options.patience)
    except CliError as trouble:
        print(trouble)
        return 1
    print(f"{time.monotonic() - began:.0f} s in all")
    return 0


def _exit(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
