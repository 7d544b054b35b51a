"""`nightmill migrate`: bring over what is kept elsewhere."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import ServerOptions
from cli.terminal import say, show_json, show_table
from jobs.clock import duration

if TYPE_CHECKING:
    from cli.migrate.outcomes import Report
    from cli.migrate.source import MigrationSource

_QUIET: Final = 10.0  # seconds between two lines about progress

app = Group("Bring over evals, runs, prompts and files from elsewhere.")


@app.callback()
def migrate() -> None:
    """Bring over evals, runs, prompts and files from elsewhere."""


@app.command()
def openai(
    options: ServerOptions,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER|FILE", exists=True, help="Saved objects, or the folder of an exporter."),
    ] = None,
    from_: Annotated[str, typer.Option("--from", metavar="URL", help="A server that speaks OpenAI's API.")] = "",
    key_env: Annotated[
        str, typer.Option(metavar="NAME", help="The environment variable with the key of that server.")
    ] = "OPENAI_API_KEY",
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="NAME=MODEL", help="The model here for one named there; may be repeated."),
    ] = None,
    capture: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=10_000, help="Ask each tuned model there N prompts; its answers become a run here."
        ),
    ] = 0,
    distill: Annotated[
        bool, typer.Option("--distill", help="With --capture: the answers also become rows to train on.")
    ] = False,
    train: Annotated[bool, typer.Option("--train", help="Train tuned models again, on the bases of --map.")] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Make what comes over. Without it nothing is changed.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write the report there, as Markdown and as JSON.")
    ] = None,
) -> None:
    """Bring over what was saved from OpenAI: first tell what comes, what differs and what is lost.

    Objects that are here already are not added again. Exit code 1 if an object failed.
    """
    from cli.migrate.apply import migrate as rows_of
    from cli.migrate.apply import store_report
    from cli.migrate.capture import capture as ask
    from cli.migrate.outcomes import MigrationOutcome, Report
    from cli.migrate.server import ServerSource

    if (capture and not from_) or (distill and not capture):
        raise CliError("--capture needs --from, and --distill needs --capture")
    names = dict(_parse_map(text) for text in map_ or ())
    with _source(paths or (), from_, key_env) as source:
        result = Report(source.name, apply)
        rows = rows_of(source, options.server, names, applied=apply, train=train, show=_progress_line())
        if isinstance(source, ServerSource) and capture:
            rows = chain(rows, ask(source, options.server, capture, applied=apply, distill=distill))
        result.rows.extend(rows)
    if not result.rows:
        raise CliError("there is nothing to bring over")
    _show(options, result)
    if report is not None:
        _write_report(result, report)
    if apply and any(row.id and row.outcome != MigrationOutcome.PRESENT for row in result.rows):
        store_report(options.server, result)
    if failed := result.counts[MigrationOutcome.FAILED]:
        raise CliError(f"{failed} objects failed; the same command goes on with them")
    if not apply:
        say("nothing was changed; --apply brings it over", err=True)


def _show(options: ServerOptions, result: "Report") -> None:
    """Show the rows of a report, and how many there are of each outcome."""
    from cli.migrate.outcomes import WORDS, MigrationOutcome

    if options.as_json:
        show_json([asdict(row) for row in result.rows])
        return
    head = ("id there", "kind", "outcome", "id here", "reason")
    show_table(head, [(row.origin_id, row.kind, WORDS[row.outcome], row.id or "-", row.reason) for row in result.rows])
    say(", ".join(f"{WORDS[MigrationOutcome(name)]}: {count}" for name, count in result.counts.items() if count))


def _write_report(result: "Report", folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result.name}.md").write_text(result.to_markdown(), encoding="utf-8")
    (folder / f"{result.name}.json").write_text(json.dumps(result.to_json(), indent=2), encoding="utf-8")


@contextmanager
def _source(paths: Sequence[Path], url: str, key_env: str) -> "Iterator[MigrationSource]":
    """Yield where objects come from. Raises CliError."""
    from cli.migrate.folder import FolderSource
    from cli.migrate.server import ServerSource, connect_source

    if bool(paths) == bool(url):
        raise CliError("name files or folders, or a server with --from")
    if url:
        key = os.environ.get(key_env, "")
        if not key:
            raise CliError(f"no key for {url}: set {key_env}, or name its variable with --key-env")
        with connect_source(url, key) as server:
            yield ServerSource(server)
        return
    with tempfile.TemporaryDirectory(prefix="nightmill-") as scratch:
        yield FolderSource(paths, Path(scratch))


def _progress_line() -> Callable[[int, int], None]:
    """Return what prints, at most every few seconds, how many objects are done, and the time left."""
    began = printed_at = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal printed_at
        now = time.monotonic()
        if done and now - printed_at >= _QUIET:
            printed_at = now
            say(f"{done} of {total} objects, {duration((now - began) / done * (total - done))} left", err=True)

    return show


def _parse_map(text: str) -> tuple[str, str]:
    """Return the two models of a value of --map. Names may hold an equals sign; models here do not."""
    name, _, model = text.rpartition("=")
    if not name or not model:
        raise CliError(f"--map {text}: it is NAME=MODEL, such as gpt-4o-mini=smollm2-135m-instruct")
    return name, model
