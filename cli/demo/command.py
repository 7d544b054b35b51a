"""`nightmill demo`: start everything, run two examples, stop.

system ─▶ examples/batches.py (two batches, signed webhooks, results) ─▶ examples/documents.py (answers with sources)
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from cli.errors import CliError
from cli.terminal import escaped

if TYPE_CHECKING:
    from rich.console import Console

    from cli.demo.system import System

_PACKAGED: Final = Path(__file__).with_name("examples")
#: The folder of the examples: beside this module in the wheel, at the root in a checkout.
EXAMPLES: Final = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "examples"
_WIDTH = 140  # characters, without a terminal
_LOOK_SECONDS = 0.2


def demo(
    data_dir: Annotated[Path, typer.Option(help="The folder of the demo. It is kept for the next run.")] = Path(
        ".nightmill-demo"
    ),
    chats: Annotated[int, typer.Option(min=12, help="How many chat requests to run.")] = 128,
    documents: Annotated[
        int, typer.Option(min=12, help="How many docstrings to embed, at least as many as chats.")
    ] = 480,
    max_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 24,
    model: Annotated[str, typer.Option(help="The model of the chats.")] = "smollm2-135m-instruct",
    embedding_model: Annotated[str, typer.Option(help="The model of the embeddings.")] = "all-minilm-l6-v2",
    engine_url: Annotated[
        list[str] | None, typer.Option(help="Use an OpenAI-compatible server; may be repeated.")
    ] = None,
    no_vllm: Annotated[bool, typer.Option("--no-vllm", help="Start no vLLM here.")] = False,
    port: Annotated[int, typer.Option(help="The port of the API; 0 takes a free port. Flower takes the next.")] = 0,
    patience: Annotated[float, typer.Option(help="Give up after this many seconds.")] = 900.0,
    since: Annotated[
        float | None, typer.Option(hidden=True, help="When the set-up before it began, in Unix seconds.")
    ] = None,
    stay: Annotated[bool, typer.Option("--stay", help="Keep everything running until Ctrl-C.")] = False,
) -> None:
    """Start everything, run real batches, show the results and stop. Exit code 1 if a result is missing."""
    from rich.console import Console

    from cli.demo import system

    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    began = time.monotonic()
    options = [word for url in engine_url or [] for word in ("--engine-url", url)] + ["--no-vllm"] * no_vllm
    options.append("--openai-aliases")
    models = ["--model", model, "--embedding-model", embedding_model]
    sizes = ["--chats", str(chats), "--documents", str(documents), "--max-tokens", str(max_tokens)]
    signal.signal(signal.SIGTERM, _leave)
    where = escaped(f"in {data_dir} (logs in {data_dir / 'logs'})")
    console.print(f"[bold]starting Nightmill[/] {where}", soft_wrap=True)
    own = {"NIGHTMILL_WEBHOOK_ALLOW_PRIVATE": "true"}
    with _interruptible(console), system.running(data_dir, options, own, port) as up:
        up.wait_until_ready()
        console.print(f"the API answers at {up.url}/v1 after {time.monotonic() - began:.0f} s")
        run_example(up, "batches", [*models, *sizes], began + patience)
        run_example(up, "documents", models, began + patience)
        _show_next(console, up.folder.path)
        console.print(describe_time(time.monotonic() - began, since))
        if stay:
            _stay(console, up)


def run_example(up: "System", name: str, options: Sequence[str], deadline: float) -> None:
    """Run a script of `examples/` against an installation, in the folder `demo` of its data folder.

    Raises:
        CliError: The script fails or does not end in time, or the installation does not go on.
    """
    folder, script = up.folder.path / "demo", EXAMPLES / f"{name}.py"
    folder.mkdir(exist_ok=True)
    own = {"OPENAI_BASE_URL": f"{up.url}/v1", "OPENAI_API_KEY": up.api_key, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(script), *options]
    environment = {**os.environ, **own}
    # A session of its own: Ctrl-C reaches this process alone, which then ends the script.
    with subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True) as process:  # noqa: S603 (ours)
        try:
            while process.poll() is None:
                up.check()
                if time.monotonic() > deadline:
                    raise CliError(f"{script} did not end in time; look at {up.folder.logs}")
                threading.Event().wait(_LOOK_SECONDS)
        finally:
            process.terminate()
    if process.returncode:
        raise CliError(f"the demo is not complete: {script} has failed")


def describe_time(seconds: float, since: float | None) -> str:
    """Return what the demo took, and with the set-up, which began at `since`, where one came before it."""
    if since is None:
        return f"[bold]{seconds:.0f} s[/] for the demo"
    whole = max(time.time() - since, seconds)
    return (
        f"[bold]{whole:.0f} s[/] from nothing to here: {whole - seconds:.0f} s of set-up, {seconds:.0f} s of the demo"
    )


def _show_next(console: "Console", data_dir: Path) -> None:
    """Print commands to try next."""
    from jobs.settings import Settings

    flower = Settings().flower
    command, data_dir, scripts = map(_as_typed, (Path(sys.argv[0]), data_dir, EXAMPLES))
    lines = (
        f"what ran is in {scripts}, the requests and their results are in {data_dir / 'demo'}",
        f"{command} up --data-dir {data_dir}    (prints its URL and where the key is)",
        f"{command} console --data-dir {data_dir}    (prints a link that opens all of this in a browser)",
        f"{command} submit {data_dir / 'demo' / 'summaries.jsonl'} --data-dir {data_dir}    (in another terminal)",
        f"http://127.0.0.1:{flower}    Flower, while `nightmill up` runs (password: {data_dir / 'flower.password'})",
        f"{command} --help, and README.md",
    )
    console.print("\n[bold]What to try next[/]")
    for line in lines:
        console.print(f"  {escaped(line)}", soft_wrap=True, highlight=False)


def _as_typed(path: Path) -> Path:
    """Return a path relative to the current folder where it lies below that."""
    return path.absolute().relative_to(Path.cwd()) if path.absolute().is_relative_to(Path.cwd()) else path


def _stay(console: "Console", up: "System") -> None:
    console.print(f"{up.url}/v1 and Flower at {up.flower_url} stay up until Ctrl-C", soft_wrap=True)
    while True:
        up.check()
        threading.Event().wait(1.0)


@contextmanager
def _interruptible(console: "Console") -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        console.print("stopped")
        raise typer.Exit(130) from None


def _leave(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)
