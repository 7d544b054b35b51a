"""`nightmill datasets`: named rows in versions, each split by hash."""

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.client.progress import follow
from cli.errors import CliError
from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.terminal import moment, say

app = Group("Keep rows in named versions, which trainings, evals and batches name.")
Name = Annotated[str, typer.Argument(metavar="DATASET", help="The dataset's name or id.")]


@app.command()
def create(
    options: ServerOptions,
    name: Annotated[str, typer.Argument(metavar="DATASET", help="The name, by which it is referred to.")],
    split: Annotated[
        str, typer.Option(metavar="NAME=FRACTION,…", help="Parts such as train=0.8,test=0.2. Else one file, all.")
    ] = "",
    by: Annotated[
        str, typer.Option(metavar="POINTER", help="Keep rows with the same value there together, such as /user/id.")
    ] = "",
    time: Annotated[str, typer.Option(metavar="POINTER", help="Put the rows with the oldest time there first.")] = "",
    folds: Annotated[int, typer.Option(min=0, max=10, help="Make that many folds instead of parts.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Another seed splits the same rows otherwise.")] = 0,
    description: Annotated[str, typer.Option(help="What the rows are.")] = "",
) -> None:
    """Create a dataset without rows, and print its id. Its split never changes."""
    body: dict[str, Any] = {"name": name, "seed": seed} | ({"description": description} if description else {})
    made = options.server.post("/datasets", body | _split(split, by, time, folds))
    options.show(made, made["id"])


@app.command()
def add(
    options: ServerOptions,
    dataset: Name,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A path, the id of a file, run or batch, dataset:NAME@VERSION/SPLIT, or a source as JSON.",
        ),
    ],
    deduplicate: Annotated[bool, typer.Option("--deduplicate", help="Keep the first of equal rows.")] = False,
    git_commit: Annotated[str, typer.Option(help="The commit that the rows come from, kept as it is.")] = "",
    dvc_hash: Annotated[str, typer.Option(help="The hash that DVC has of the rows, kept as it is.")] = "",
) -> None:
    """Make the next version of a dataset of some sources, wait for it, and print its number."""
    server = options.server
    origin = {"git_commit": git_commit, "dvc_hash": dvc_hash}
    body = {"sources": [_source(options, source) for source in sources], "deduplicate": deduplicate}
    made = server.post(f"{_path(dataset)}/versions", body | {name: value for name, value in origin.items() if value})
    follow(server, made["id"])
    version = server.get(f"{_path(dataset)}/versions/{made['version']}")
    if version["status"] != "completed":
        errors = (version["errors"] or {"data": []})["data"]
        why = "".join(f"\n{error['param']}, line {error['line']}: {error['message']}" for error in errors[:5])
        raise CliError(f"version {version['version']} is {version['status']}{why}")
    options.show(version, str(version["version"]))


@app.command("list")
def list_(options: ServerOptions, limit: Limit = 100) -> None:
    """List the datasets of your project, the newest first."""
    head = ("dataset", "id", "split", "version", "created")
    options.show_entries(options.server.pages("/datasets", {}, limit), head, _row)


@app.command()
def show(options: ServerOptions, dataset: Name) -> None:
    """Show a dataset and the splits of its newest complete version."""
    shown = options.server.get(_path(dataset))
    number = shown["latest_version"]
    version = None if number is None else options.server.get(f"{_path(dataset)}/versions/{number}")
    splits = [
        f"{split['reference']}: {split['rows']} rows, {split['file_id']}"
        for split in (version or {"splits": []})["splits"]
    ]
    head = f"{shown['name']}: {shown['split']['type']}, seed {shown['seed']}"
    options.show({**shown, "version": version}, head, *(splits or ["no complete version"]))


@app.command()
def versions(options: ServerOptions, dataset: Name, limit: Limit = 100) -> None:
    """List the versions of a dataset, the newest first."""
    entries = options.server.pages(f"{_path(dataset)}/versions", {}, limit)
    options.show_entries(entries, ("version", "status", "rows", "splits", "created"), _version_row)


@app.command()
def rows(
    options: ServerOptions,
    dataset: Name,
    split: Annotated[str, typer.Option(help="The split. May be left out where there is one.")] = "",
    version: Annotated[int, typer.Option(min=0, help="The version. Else the newest complete one.")] = 0,
    limit: Limit = 10,
) -> None:
    """Print the first rows of a split, one on each line."""
    number = version or options.server.get(_path(dataset))["latest_version"]
    if number is None:
        raise CliError(f"{dataset} has no complete version")
    splits = options.server.get(f"{_path(dataset)}/versions/{number}")["splits"]
    chosen = [entry for entry in splits if split in ("", entry["name"])]
    if len(chosen) != 1:
        raise CliError(f"name one of the splits with --split: {', '.join(entry['name'] for entry in splits) or 'none'}")
    with options.server.content(chosen[0]["file_id"]) as lines:
        for _, line in zip(range(limit), lines, strict=False):
            say(line.decode().rstrip("\n"))


@app.command()
def delete(
    options: ServerOptions,
    dataset: Name,
    version: Annotated[int, typer.Option(min=0, help="Delete this version alone.")] = 0,
) -> None:
    """Delete a dataset with all its files, or one version of it."""
    path = f"{_path(dataset)}/versions/{version}" if version else _path(dataset)
    options.show(options.server.delete(path), f"{dataset}{f' version {version}' if version else ''} deleted")


def _path(dataset: str) -> str:
    return f"/datasets/{quote(dataset, safe='', errors='replace')}"


def _split(text: str, by: str, time: str, folds: int) -> dict[str, Any]:
    """Return the field `split` of a create, none where no option says how. Raises CliError."""
    if folds:
        return {"split": {"type": "k_fold", "folds": folds} | ({"by": by} if by else {})}
    if not text:
        if by or time:
            raise CliError("--by and --time need the parts: --split train=0.8,test=0.2")
        return {}
    if by and time:
        raise CliError("--by and --time exclude each other")
    pointer = by or time
    kind = "temporal" if time else "group" if by else "random"
    parts = [_part(word) for word in text.split(",")]
    return {"split": {"type": kind, "parts": parts} | ({"by": pointer} if pointer else {})}


def _part(text: str) -> dict[str, Any]:
    name, _, fraction = text.partition("=")
    try:
        return {"name": name.strip(), "fraction": float(fraction)}
    except ValueError:
        raise CliError(f"--split {text}: write NAME=FRACTION, such as train=0.8") from None


def _source(options: ServerOptions, text: str) -> dict[str, Any]:
    if text.startswith("{"):
        try:
            source: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise CliError(f"this source is no JSON: {error}") from None
        return source
    if text.startswith("evalrun_"):
        return {"type": "eval_run", "run_id": text}
    if text.startswith("batch_"):
        return {"type": "batch", "batch_id": text}
    if text.startswith("dataset:"):
        return {"type": "file_id", "id": text}
    return {"type": "file_id", "id": options.server.file_id(text, "user_data")}


def _row(dataset: dict[str, Any]) -> tuple[object, ...]:
    version = dataset["latest_version"]
    return dataset["name"], dataset["id"], dataset["split"]["type"], version or "-", moment(dataset["created_at"])


def _version_row(version: dict[str, Any]) -> tuple[object, ...]:
    splits = ", ".join(f"{split['name']} {split['rows']}" for split in version["splits"]) or "-"
    number = "-" if version["rows"] is None else version["rows"]
    return version["version"], version["status"], number, splits, moment(version["created_at"])
