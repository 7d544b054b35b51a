"""Reduce a job of `GET /v1/jobs/{id}` to what a person watches, and follow it until it ends."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from cli.client.server import Server, ServerUnavailable
from cli.terminal import say, visible
from cli.wording import model_progress
from jobs.clock import duration

TERMINAL = frozenset({"succeeded", "failed", "expired", "cancelled"})
_ENDS = ("completed_at", "failed_at", "expired_at", "cancelled_at")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The progress of one job at one moment. Rates and the time left are None while they are unknown."""

    id: str
    kind: str
    state: str
    model: str
    total: int
    completed: int
    failed: int
    running: int
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int  # part of output_tokens
    items_per_second: float | None
    tokens_per_second: float | None
    eta_seconds: float | None
    waiting_for: str
    queue_position: int | None
    created_at: int
    ended_at: int | None
    vector_store_id: str | None
    input_file_id: str | None
    output_file_id: str | None
    error_file_id: str | None
    errors: tuple[Mapping[str, Any], ...]
    outcomes: Mapping[str, Any]
    vector_store_index_id: str | None = None
    endpoint: str = ""
    model_status: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, job: Mapping[str, Any]) -> Self:
        progress, usage, rate = job["progress"], job["usage"], job.get("rate") or {}
        return cls(
            id=job["id"],
            kind=job["kind"],
            state=job["state"],
            model=job.get("model") or "",
            total=progress["total"],
            completed=progress["completed"],
            failed=progress["failed"],
            running=progress.get("running", 0),
            input_tokens=usage["input_tokens"],
            output_tokens=usage["output_tokens"],
            reasoning_tokens=reasoning_of(usage),
            items_per_second=rate.get("items_per_second"),
            tokens_per_second=rate.get("tokens_per_second"),
            eta_seconds=job.get("eta_seconds"),
            waiting_for=(job.get("waiting_for") or "").replace("_", " "),
            queue_position=job.get("queue_position"),
            created_at=job["created_at"],
            ended_at=next((job[name] for name in _ENDS if job.get(name)), None),
            vector_store_id=job.get("vector_store_id"),
            input_file_id=job.get("input_file_id"),
            output_file_id=job.get("output_file_id"),
            error_file_id=job.get("error_file_id"),
            errors=tuple((job.get("errors") or {}).get("data", ())),
            outcomes=job.get("outcomes") or {},
            vector_store_index_id=job.get("vector_store_index_id"),
            endpoint=job.get("endpoint") or "",
            model_status=job.get("model_status"),
        )

    @property
    def done(self) -> int:
        return self.completed + self.failed

    @property
    def has_ended(self) -> bool:
        return self.state in TERMINAL

    @property
    def standing(self) -> str:
        """Return the state, and what the job waits for."""
        if self.model_status:
            return f"{self.state}, {model_progress(self.model_status)}"
        if self.waiting_for:
            return f"{self.state}, {self.waiting_for}"
        if self.state == "queued" and self.queue_position:
            return f"queued, position {self.queue_position}"
        return self.state

    @property
    def pace(self) -> str:
        """Return items and tokens a second, and the time left, as far as they are known."""
        parts = []
        if self.items_per_second:
            parts.append(f"{self.items_per_second:.1f} items/s")
        if self.tokens_per_second:
            parts.append(f"{self.tokens_per_second:.0f} tokens/s")
        if self.eta_seconds is not None and not self.has_ended:
            parts.append(f"{duration(self.eta_seconds)} left")
        return ", ".join(parts)

    @property
    def activity(self) -> str:
        """Return how many items workers have now, the tokens so far, and the pace, as far as they are known."""
        parts = []
        if self.running and not self.model_status:
            parts.append(f"{self.running} in progress")
            parts += [f"{self.output_tokens} tokens out"] if self.output_tokens else []
        return ", ".join([*parts, *filter(None, [self.pace])])


def reasoning_of(usage: Mapping[str, Any]) -> int:
    """Return the number of reasoning tokens, which are part of the output tokens."""
    return int(usage.get("output_tokens_details", {}).get("reasoning_tokens", 0))


def doubts(outcomes: Mapping[str, Any]) -> list[str]:
    """Return what may be wrong with completed answers, and why lines failed, one sentence each."""
    cut = outcomes.get("finish_reasons", {}).get("length", 0)
    empty = outcomes.get("empty", 0)
    sentences = []
    if empty:
        sentences.append(f"{empty} of the answers {'is' if empty == 1 else 'are'} empty")
    if cut:
        sentences.append(f"{cut} {'was' if cut == 1 else 'were'} cut off at the token limit")
    sentences += [f"{count} failed with {code}" for code, count in outcomes.get("errors", {}).items()]
    return sentences


def fault(error: Mapping[str, Any]) -> str:
    """Return one entry of a batch's errors as one line of text."""
    line = f"line {error['line']}: " if error.get("line") else ""
    where = f" ({error['param']})" if error.get("param") else ""
    return f"{line}{error.get('message')}{where}"


_QUIET = 10.0  # seconds between two lines about counts, without a terminal
_STILL = 60.0  # seconds until a line is repeated while nothing changes

Show = Callable[[Snapshot], None]


def follow(server: Server, job_id: str, check: Callable[[], None] = lambda: None) -> Snapshot:
    """Show the job until it ends, and return its last state. `check` is called before each request.

    Raises:
        ServerUnavailable: the server does not come back.
    """
    pause = threading.Event()
    answered = time.monotonic()
    with _display() as show:
        while True:
            check()
            try:
                snapshot = Snapshot.of(server.get(f"/jobs/{job_id}"))
            except ServerUnavailable:
                if time.monotonic() - answered > server.timings.follow_patience:
                    raise
            else:
                answered = time.monotonic()
                show(snapshot)
                if snapshot.has_ended:
                    return snapshot
            pause.wait(server.timings.follow_look)


@contextmanager
def _display() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_printer()
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
            task, description=visible(job.standing), total=job.total or None, completed=job.done, pace=job.activity
        )


def _line_printer(clock: Callable[[], float] = time.monotonic) -> Show:
    """Return what prints a line for each change, counts at most every few seconds, and a sign of life each minute."""
    began = clock()
    printed: tuple[object, ...] = ()
    counted: tuple[object, ...] = ()
    printed_at = 0.0

    def show(job: Snapshot) -> None:
        nonlocal printed, counted, printed_at
        quiet = clock() - printed_at
        stage = (job.state, job.model_status or job.standing)  # a loading model's `standing` counts seconds
        counts = (job.done, job.running, job.output_tokens)
        if stage == printed and quiet < (_STILL if counts == counted else _QUIET):
            return
        still = stage == printed and counts == counted
        printed, counted, printed_at = stage, counts, clock()
        parts = [job.activity, f"{duration(clock() - began)} so far" if still and not job.model_status else ""]
        details = ", ".join(filter(None, parts))
        say(f"{job.id} {job.standing}: {job.done} of {job.total}{f' ({details})' if details else ''}", err=True)

    return show
