"""`nightmill migrate`: bring over what is kept elsewhere."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import ServerOptions
from cli.terminal import say, show_json, show_table

if TYPE_CHECKING:
    from cli.migrate.source import Source

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
    from cli.migrate.outcomes import WORDS, MigrationOutcome, Report

    names = dict(_parse_map(text) for text in map_ or ())
    with _source(paths or (), from_, key_env) as source:
        result = Report(source.name, apply)
        for row in rows_of(source, options.server, names, applied=apply, train=train):
            result.rows.append(row)
    if not result.rows:
        raise CliError("there is nothing to bring over")
    counts = result.counts
    if options.as_json:
        show_json([asdict(row) for row in result.rows])
    else:
        head = ("id there", "kind", "outcome", "id here", "reason")
        show_table(
            head, [(row.origin_id, row.kind, WORDS[row.outcome], row.id or "-", row.reason) for row in result.rows]
        )
        say(", ".join(f"{WORDS[outcome]}: {counts[outcome]}" for outcome in MigrationOutcome if counts[outcome]))
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        (report / f"{result.name}.md").write_text(result.to_markdown(), encoding="utf-8")
        (report / f"{result.name}.json").write_text(json.dumps(result.to_json(), indent=2), encoding="utf-8")
    if apply and any(row.id and row.outcome != MigrationOutcome.PRESENT for row in result.rows):
        store_report(options.server, result)
    if counts[MigrationOutcome.FAILED]:
        raise CliError(f"{counts[MigrationOutcome.FAILED]} objects failed; the same command goes on with them")
    if not apply:
        say("nothing was changed; --apply brings it over", err=True)


@contextmanager
def _source(paths: Sequence[Path], url: str, key_env: str) -> "Iterator[Source]":
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


def _parse_map(text: str) -> tuple[str, str]:
    """Return the two models of a value of --map. Names may hold an equals sign; models here do not."""
    name, _, model = text.rpartition("=")
    if not name or not model:
        raise CliError(f"--map {text}: it is NAME=MODEL, such as gpt-4o-mini=smollm2-135m-instruct")
    return name, model
