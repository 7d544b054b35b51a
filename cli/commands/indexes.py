"""`nightmill indexes`: a second index of a vector store, built, compared with the one in use, switched to and back."""

import json
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client.server import Server
from cli.errors import CliError
from cli.groups import Group
from cli.options import ServerOptions, Store
from cli.terminal import say, show_json, show_table

_MAX_INDEXES = 100
_LOOK_SECONDS = 1.0
_COLUMNS = ("index", "status", "model", "dimensions", "chunks")
_MARKS = ("recall", "ndcg", "mrr")
#: Seconds for up to 100 queries, each searched in both indexes, one after the other.
_COMPARE_TIMEOUT = 1800.0

app = Group("Build a second index of a vector store, compare it and switch to it.")
Id = Annotated[str, typer.Argument(metavar="ID", help="The index's id, as `nightmill indexes list` shows it.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait until the index is built. Exit code 1 if files are missing then.")
]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Switch even if files are missing in the index.")]


@app.command("list")
def list_(options: ServerOptions, store: Store) -> None:
    """List the indexes of a vector store, with the index in use."""
    entries = options.server.pages(_path(store), {}, _MAX_INDEXES)
    options.show_entries(entries, (*_COLUMNS, "files", "missing"), _row)


@app.command()
def create(
    options: ServerOptions,
    store: Store,
    model: Annotated[str | None, typer.Option(help="The embedding model. Else the model in use.")] = None,
    dimensions: Annotated[int | None, typer.Option(help="The length of the vectors.")] = None,
    chunking: Annotated[
        str | None, typer.Option(help="How files are cut: auto, or a chunking_strategy as JSON. Else as before.")
    ] = None,
    wait: Wait = False,
) -> None:
    """Build another index of all files of a store. Searches go on to use the index in use."""
    given = {
        "embedding_model": model,
        "embedding_dimensions": dimensions,
        "chunking_strategy": None if chunking is None else _parse_chunking(chunking),
    }
    body = {name: value for name, value in given.items() if value is not None}
    made = options.server.post(_path(store), body)
    options.show(made, made["id"])
    if wait:
        _follow(options.server, made)


@app.command()
def compare(
    options: ServerOptions,
    store: Store,
    index: Id,
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="[QUERY...]", help="The queries to compare the indexes with.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help='Queries, one a line, or as JSON with the files to find: {"query": …, "relevant": ["file-…"]}.'
        ),
    ] = None,
    results: Annotated[
        int, typer.Option("--results", min=1, max=50, help="How many files to compare for each query.")
    ] = 10,
) -> None:
    """Search the index in use and another one with the same queries, and compare answers and times."""
    all_queries = [*(queries or ()), *(_read_queries(file) if file else ())]
    if not all_queries:
        raise CliError("there is no query: name some, or a file of them with --file")
    body = {"queries": all_queries, "max_num_results": results}
    report = options.server.post(f"{_path(store)}/{index}/compare", body, timeout=_COMPARE_TIMEOUT)
    known = {entry["id"]: entry for entry in options.server.pages(_path(store), {}, _MAX_INDEXES)}
    if options.as_json:
        show_json(report)
    else:
        _report(report, known, store)


@app.command()
def switch(options: ServerOptions, store: Store, index: Id, allow_missing: AllowMissing = False) -> None:
    """Let searches use this index from now on."""
    _switch(options, store, index, allow_missing=allow_missing)


@app.command()
def back(options: ServerOptions, store: Store, allow_missing: AllowMissing = False) -> None:
    """Let searches use the index again that was in use before."""
    before = _previous_index(options.server.pages(_path(store), {}, _MAX_INDEXES))
    _switch(options, store, before, allow_missing=allow_missing)


@app.command()
def sync(options: ServerOptions, store: Store, index: Id, wait: Wait = False) -> None:
    """Add the files to an index that failed in it or were cancelled."""
    synced = options.server.post(f"{_path(store)}/{index}/sync")
    busy = synced["file_counts"]["in_progress"]
    follows = f"; nightmill watch {synced['job_id']} follows it" if busy and synced["job_id"] else ""
    options.show(synced, f"{synced['id']} {synced['status']}, {_describe_missing(synced)}{follows}")
    if wait:
        _follow(options.server, synced)


@app.command()
def remove(options: ServerOptions, store: Store, index: Id) -> None:
    """Remove an index that is not in use, with its vectors."""
    options.show(options.server.delete(f"{_path(store)}/{index}"), f"{index} removed")


def _path(store: str) -> str:
    return f"/vector_stores/{store}/indexes"


def _parse_chunking(text: str) -> dict[str, Any]:
    """Return the chunking strategy as the API takes it. The server validates it."""
    if not text.lstrip().startswith("{"):
        return {"type": text}
    try:
        strategy: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CliError(f"--chunking is not valid JSON: {error}") from error
    return strategy


def _read_queries(path: Path) -> list[Any]:
    """Read queries, one a line: a JSON object, or plain text. Raises CliError for invalid input."""
    queries = []
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise CliError(f"{path} is not UTF-8") from error
    for number, line in enumerate(map(str.strip, lines), 1):
        try:
            if line:
                queries.append(json.loads(line) if line.startswith("{") else line)
        except (ValueError, RecursionError) as error:
            raise CliError(f"{path}, line {number} is not valid JSON") from error
    return queries


def _follow(server: Server, index: dict[str, Any]) -> None:
    """Follow the jobs that fill an index, one after the other. Raises CliError when files are missing in the end."""
    from cli.commands.jobs import watched

    followed = None
    while index["file_counts"]["in_progress"] or index["status"] == "building":
        if index["job_id"] not in (None, followed):
            followed = index["job_id"]
            watched(server, followed, None)
        else:
            threading.Event().wait(_LOOK_SECONDS)
        index = server.get(f"{_path(index['vector_store_id'])}/{index['id']}")
    if index["missing"]:
        raise CliError(f"{index['id']} {_describe_missing(index)}; `nightmill explain {index['job_id']}` says why")
    say(f"{index['id']} {index['status']}", err=True)


def _switch(options: ServerOptions, store: str, index: str, *, allow_missing: bool) -> None:
    switched = options.server.post(f"{_path(store)}/{index}/switch", {"allow_missing": allow_missing})
    lacks = f", {_describe_missing(switched)}" if switched["missing"] else ""
    options.show(switched, f"{switched['id']} {switched['status']}{lacks}; nightmill indexes back {store} undoes it")


def _previous_index(indexes: list[dict[str, Any]]) -> str:
    """Return the id of the index that was replaced last. Raises CliError when there is none or more than one."""
    replaced = sorted((index["replaced_at"], index["id"]) for index in indexes if index["status"] == "previous")
    if not replaced:
        raise CliError("there is no index to go back to: none was in use before, or it was removed")
    last = [name for moment, name in replaced if moment == replaced[-1][0]]
    if len(last) > 1:
        raise CliError(f"{' and '.join(last)} were replaced in the same second: switch to one of them")
    return str(last[0])


def _describe_missing(index: dict[str, Any]) -> str:
    count = index["missing"]
    return f"lacks {count or 'no'} file{'' if count == 1 else 's'}"


def _row(index: dict[str, Any]) -> tuple[object, ...]:
    return *_describe_index(index), _files(index), index["missing"]


def _files(index: dict[str, Any]) -> str:
    counts = index["file_counts"]
    parts = [f"{counts[name]} {name.replace('_', ' ')}" for name in ("in_progress", "failed", "cancelled")
            if counts[name]]  # fmt: skip
    return ", ".join([str(counts["completed"]), *parts])


def _describe_index(index: dict[str, Any]) -> tuple[str, ...]:
    chunking = index["chunking_strategy"]
    sizes = chunking.get(chunking["type"], {})
    cut = [str(sizes[name]) for name in ("max_chunk_size_tokens", "chunk_overlap_tokens") if name in sizes]
    words = " ".join([chunking["type"], "/".join(cut)]).strip()
    return index["id"], index["status"], index["embedding_model"], str(index["embedding_dimensions"] or "-"), words


def _report(report: dict[str, Any], known: dict[str, dict[str, Any]], store: str) -> None:
    """Print the figures of both indexes, and how similar their results are."""
    summary = report["summary"]
    k, count = report["max_num_results"], len(report["data"])
    judged = sum(query["active"]["recall"] is not None for query in report["data"])
    rows = []
    for side in (summary["active"], summary["candidate"]):
        index = known.get(side["index_id"])
        cells = _describe_index(index) if index else (side["index_id"], "removed", "-", "-", "-")
        rows.append((*cells, *(_figure(side[name]) for name in _MARKS), f"{side['latency_ms']:.1f}"))
    marks = (f"recall@{k}", f"nDCG@{k}", f"MRR@{k}")
    show_table((*_COLUMNS, *marks, "median ms"), rows)
    alike = f"overlap {summary['overlap']:.4f}, rank correlation {_figure(summary['rank_correlation'])}"
    say(f"{alike}; {count} quer{'y' if count == 1 else 'ies'}, {judged} of them judged")
    if report["missing"]:
        candidate = summary["candidate"]["index_id"]
        say(f"{candidate} {_describe_missing(report)}; nightmill indexes sync {store} {candidate} brings them in")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
