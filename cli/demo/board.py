"""The demo's live display: a bar for each batch, and what is being waited for. Plain lines where nobody watches."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cli.demo.batch import DemoBatch
from cli.terminal import escaped, visible

_PLAIN_SECONDS = 15.0  # between lines that say the same, without a terminal
_WAITING = {
    "waiting_for_model": "waiting for its model: the engine is loading",
    "waiting_for_disk": "waiting for room on the disk",
}


class Board:
    """Shows the batches; told of each look."""

    def __init__(self, console: Console, progress: Progress, batches: Sequence[DemoBatch]) -> None:
        self._console = console
        self._progress = progress
        self._tasks = {one.id: progress.add_task(one.title, total=len(one.requests), told="") for one in batches}
        self._said: dict[str, tuple[float, str]] = {}

    def show(self, batch: DemoBatch) -> None:
        done = batch.job["progress"]["completed"] + batch.job["progress"]["failed"]
        self._progress.update(self._tasks[batch.id], completed=done, told=visible(told(batch)))
        if not self._console.is_terminal:
            self._print(batch, done)

    def _print(self, batch: DemoBatch, done: int) -> None:
        at, before = self._said.get(batch.id, (0.0, ""))
        if told(batch) != before or time.monotonic() - at > _PLAIN_SECONDS:
            self._said[batch.id] = time.monotonic(), told(batch)
            self._console.print(f"{batch.title}: {done}/{len(batch.requests)} {escaped(told(batch))}")


def told(batch: DemoBatch) -> str:
    """What a batch is doing, in words."""
    if batch.job["waiting_for"]:
        return _WAITING.get(batch.job["waiting_for"], str(batch.job["waiting_for"]))
    return str(batch.job["status"])


@contextmanager
def board(console: Console, batches: Sequence[DemoBatch]) -> Iterator[Board]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<11}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[told]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Board(console, progress, batches)
