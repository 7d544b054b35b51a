"""`nightmill demo`: the steps of the demo in their order."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cli.errors import CliError
from cli.terminal import escaped, visible
from cli.wording import model_progress

if TYPE_CHECKING:
    from openai import OpenAI
    from rich.console import Console
    from rich.progress import Progress

    from cli.demo.answers import DemoStore
    from cli.demo.batch import DemoBatch
    from cli.demo.corpus import Docstring
    from cli.demo.inbox import Inbox
    from cli.demo.system import System

CHATS = "summaries"
VECTORS = "embeddings"
_Lines = list[dict[str, Any]]
_WIDTH = 140  # characters, without a terminal
_LOOK_SECONDS = 0.5
_WEBHOOK_SECONDS = 30.0  # after the last batch has ended


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

    from cli.demo import corpus, system

    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    began = time.monotonic()
    options = [word for url in engine_url or [] for word in ("--engine-url", url)] + ["--no-vllm"] * no_vllm
    options.append("--openai-aliases")
    signal.signal(signal.SIGTERM, _leave)
    docstrings = corpus.docstrings(max(chats, documents))
    lines = (
        corpus.chats(docstrings[:chats], model, max_tokens),
        corpus.embeddings(docstrings, embedding_model),
    )
    where = escaped(f"in {data_dir} (logs in {data_dir / 'logs'})")
    console.print(f"[bold]starting Nightmill[/] {where}", soft_wrap=True)
    own = {"NIGHTMILL_WEBHOOK_ALLOW_PRIVATE": "true"}
    with _interruptible(console), system.running(data_dir, options, own, port) as up:
        up.wait_until_ready()
        console.print(f"the API answers at {up.url}/v1 after {time.monotonic() - began:.0f} s")
        missing = _run(console, up, docstrings, lines, began + patience)
        console.print(describe_time(time.monotonic() - began, since))
        if stay and not missing:
            _stay(console, up)
    if missing:
        raise CliError("the demo is not complete:\n  " + "\n  ".join(missing))


def describe_time(seconds: float, since: float | None) -> str:
    """Return what the demo took, and with the set-up, which began at `since`, where one came before it."""
    if since is None:
        return f"[bold]{seconds:.0f} s[/] for the demo"
    whole = max(time.time() - since, seconds)
    return (
        f"[bold]{whole:.0f} s[/] from nothing to here: {whole - seconds:.0f} s of set-up, {seconds:.0f} s of the demo"
    )


def _run(
    console: "Console", up: "System", docstrings: "Sequence[Docstring]", lines: tuple[_Lines, _Lines], deadline: float
) -> list[str]:
    """Run all steps; return what is missing in the end."""
    from openai import OpenAI

    from cli.demo import answers, inbox, report
    from cli.demo.batch import cancel_live, faults, submit
    from jobs.settings import Settings

    client = OpenAI(base_url=f"{up.url}/v1", api_key=up.api_key)
    folder = up.folder.path / "demo"
    folder.mkdir(exist_ok=True)
    cancel_live(client)
    with inbox.registered(client) as mail:
        chats = submit(client, CHATS, "/v1/chat/completions", lines[0], folder)
        vectors = submit(client, VECTORS, "/v1/embeddings", lines[1], folder)
        console.print(f"uploaded {len(lines[0])} chat and {len(lines[1])} embedding requests, created two batches")
        _follow(console, client, up, [chats, vectors], deadline)
        _await_mail(mail, [chats, vectors], up)
        for batch in (chats, vectors):
            batch.download(client)
    missing = list(faults([chats, vectors], mail))
    if not missing:
        models = (str(lines[0][0]["body"]["model"]), str(lines[1][0]["body"]["model"]))
        store = _library(console, client, up, models, deadline)
        missing += answers.faults(store)
    if not missing:
        report.show_answers(console, docstrings, chats, vectors)
        report.show_neighbours(console, docstrings, vectors)
        report.show_counts(console, [chats, vectors], mail.events)
        report.show_library(console, store)
        report.show_next(console, folder, up.folder.path, Settings().flower)
    return missing


def _library(
    console: "Console", client: "OpenAI", up: "System", models: tuple[str, str], deadline: float
) -> "DemoStore":
    """Bring documents into a vector store, and answer questions from them."""
    from cli.demo import answers, library

    papers = library.papers()
    answers.forget_earlier(client)
    began = time.monotonic()
    store_id, batch = answers.begin(client, papers, models[1])
    console.print(f"uploaded {len(papers)} documents (text, HTML, PDF) of this machine's Python into a vector store")
    while batch.status == "in_progress":
        up.check()
        if time.monotonic() > deadline:
            raise CliError(f"the documents did not come in in time; look at {up.folder.logs}")
        threading.Event().wait(_LOOK_SECONDS)
        batch = client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store_id)
    store = answers.DemoStore(store_id, papers, batch, time.monotonic() - began)
    if batch.status == "completed":
        store.answers = [answers.ask(client, store_id, models[0], question) for question in library.QUESTIONS]
    return store


def _follow(
    console: "Console", client: "OpenAI", up: "System", batches: "Sequence[DemoBatch]", deadline: float
) -> None:
    """Show the batches until both have ended. Raises CliError when they do not end in time."""
    with board(console, batches) as shown:
        while not all(batch.ended for batch in batches):
            for batch in batches:
                batch.look(client)
                shown.show(batch)
            up.check()
            if time.monotonic() > deadline:
                raise CliError(f"the batches did not end in time; look at {up.folder.logs}")
            threading.Event().wait(_LOOK_SECONDS)


def _await_mail(mail: "Inbox", batches: "Sequence[DemoBatch]", up: "System") -> None:
    deadline = time.monotonic() + _WEBHOOK_SECONDS
    while not all(batch.id in mail.events for batch in batches) and time.monotonic() < deadline:
        up.check()
        threading.Event().wait(0.1)


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


_PLAIN_SECONDS = 15.0  # between equal lines, without a terminal
_WAITING = {
    "waiting_for_disk": "waiting for room on the disk",
}


class Board:
    """Show the progress of the batches, as a bar in a terminal and as lines elsewhere."""

    def __init__(self, console: "Console", progress: "Progress", batches: "Sequence[DemoBatch]") -> None:
        self._console = console
        self._progress = progress
        self._tasks = {
            batch.id: progress.add_task(batch.title, total=len(batch.requests), state="") for batch in batches
        }
        self._printed: dict[str, tuple[float, object]] = {}

    def show(self, batch: "DemoBatch") -> None:
        done = batch.job["progress"]["completed"] + batch.job["progress"]["failed"]
        self._progress.update(self._tasks[batch.id], completed=done, state=visible(progress_text(batch)))
        if not self._console.is_terminal:
            self._print(batch, done)

    def _print(self, batch: "DemoBatch", done: int) -> None:
        at, before = self._printed.get(batch.id, (0.0, ""))
        stage = batch.job["model_status"] or progress_text(batch)  # the text about a loading model counts seconds
        if stage != before or time.monotonic() - at > _PLAIN_SECONDS:
            self._printed[batch.id] = time.monotonic(), stage
            self._console.print(f"{batch.title}: {done}/{len(batch.requests)} {escaped(progress_text(batch))}")


def progress_text(batch: "DemoBatch") -> str:
    """Return what a batch is doing, in words."""
    if batch.job["model_status"]:
        return model_progress(batch.job["model_status"])
    if batch.job["waiting_for"]:
        return _WAITING.get(batch.job["waiting_for"], str(batch.job["waiting_for"]))
    return str(batch.job["status"])


@contextmanager
def board(console: "Console", batches: "Sequence[DemoBatch]") -> Iterator[Board]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<11}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Board(console, progress, batches)
