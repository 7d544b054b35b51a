"""Follows a job until it ends: a bar on a terminal, a line now and then elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cli.server import Away, Server
from cli.snapshot import Snapshot
from cli.terminal import say, visible

_INTERVAL = 0.5  # seconds between looks
_QUIET = 10.0  # seconds between lines where nobody watches a bar
_AWAY = 120.0  # a server that is restarted comes back; after this long it is told

Show = Callable[[Snapshot], None]


def follow(server: Server, job_id: str, check: Callable[[], None] = lambda: None) -> Snapshot:
    """Show the job until it ends, and return its last state. Raises Away when the server stays away.

    `check` is called with each look, and raises when waiting makes no sense any more.
    """
    pause = threading.Event()
    answered = time.monotonic()
    with _shown() as show:
        while True:
            check()
            try:
                snapshot = Snapshot.of(server.get(f"/jobs/{job_id}"))
            except Away:
                if time.monotonic() - answered > _AWAY:
                    raise
            else:
                answered = time.monotonic()
                show(snapshot)
                if snapshot.ended:
                    return snapshot
            pause.wait(_INTERVAL)


@contextmanager
def _shown() -> Iterator[Show]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("queued", total=None, pace="")
        yield lambda job: progress.update(
            task, description=visible(job.standing), total=job.total or None, completed=job.done, pace=job.pace
        )


def _lines() -> Show:
    """A line when the state changes, and every few seconds while it does not."""
    told = ""
    told_at = 0.0

    def show(job: Snapshot) -> None:
        nonlocal told, told_at
        now = time.monotonic()
        if job.standing == told and now - told_at < _QUIET:
            return
        told, told_at = job.standing, now
        pace = f" ({job.pace})" if job.pace else ""
        say(f"{job.id} {job.standing}: {job.done} of {job.total}{pace}", err=True)

    return show
