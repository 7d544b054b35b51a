"""`nightmill stores`: vector stores, their files, and searches."""

from typing import Annotated, Any

import typer

from cli.client.server import require_files
from cli.commands.jobs import watched
from cli.errors import CliError
from cli.groups import Group
from cli.options import Limit, ServerOptions, Store
from cli.terminal import moment

app = Group("Create vector stores, add files to them and search them.")
_WIDTH = 300  # characters of a passage that are shown


@app.command()
def create(
    options: ServerOptions,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name for people; it need not be unique.")] = "",
    model: Annotated[str, typer.Option(help="The embedding model. Else the deployment's default.")] = "",
) -> None:
    """Create an empty vector store and print its id."""
    given = {"name": name, "embedding_model": model}
    made = options.server.post("/vector_stores", {key: value for key, value in given.items() if value})
    options.show(made, made["id"])


@app.command("list")
def list_(options: ServerOptions, limit: Limit = 20) -> None:
    """List the vector stores of your project, the newest first."""
    head = ("store", "name", "status", "files", "failed", "bytes", "model", "created")
    options.show_entries(options.server.pages("/vector_stores", {}, limit), head, _store_row)


@app.command()
def add(
    options: ServerOptions,
    store: Store,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Paths to upload, or ids of uploaded files.")],
    wait: Annotated[bool, typer.Option(help="Wait until the files can be searched.")] = True,
) -> None:
    """Add files to a vector store. Exit code 1 if a file could not be read."""
    require_files(files, "nothing was added")
    server = options.server
    ids = [server.file_id(file, "assistants") for file in files]
    made = server.post(f"/vector_stores/{store}/file_batches", {"file_ids": ids})
    if not (wait and options.as_json):
        options.show(made, made["id"])
    if wait:
        ended = watched(server, made["id"], None, as_json=options.as_json)
        if ended.failed:
            raise CliError(f"{ended.failed} files failed; `nightmill explain {made['id']}` says why")


@app.command()
def files(options: ServerOptions, store: Store, limit: Limit = 20) -> None:
    """List the files of a vector store, the newest first."""
    entries = options.server.pages(f"/vector_stores/{store}/files", {}, limit)
    options.show_entries(entries, ("file", "status", "bytes", "added", "error"), _file_row)


@app.command()
def search(
    options: ServerOptions,
    store: Store,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.")],
    limit: Annotated[int, typer.Option(min=1, max=50, help="How many passages, the best first.")] = 5,
) -> None:
    """Print the passages of a vector store that answer a query best."""
    body = {"query": query, "max_num_results": limit}
    passages = options.server.post(f"/vector_stores/{store}/search", body)["data"]
    options.show_entries(passages, ("score", "file", "name", "passage"), _passage_row)


@app.command()
def remove(
    options: ServerOptions,
    store: Store,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="The ids of the files.")],
) -> None:
    """Remove files from a vector store. The files themselves stay."""
    for file in files:
        options.show(options.server.delete(f"/vector_stores/{store}/files/{file}"), f"{file} removed")


@app.command()
def delete(options: ServerOptions, store: Store) -> None:
    """Delete a vector store. Its files stay."""
    options.show(options.server.delete(f"/vector_stores/{store}"), f"{store} deleted")


def _store_row(store: dict[str, Any]) -> tuple[object, ...]:
    counts = store["file_counts"]
    done = f"{counts['completed']} of {counts['total']}"
    columns = (store["status"], done, counts["failed"], store["usage_bytes"], store["embedding_model"])
    return store["id"], store["name"], *columns, moment(store["created_at"])


def _file_row(file: dict[str, Any]) -> tuple[object, ...]:
    error = (file["last_error"] or {}).get("message", "-")
    state = (file.get("stage") or file["status"]).replace("_", " ")
    return file["id"], state, file["usage_bytes"], moment(file["created_at"]), error


def _passage_row(passage: dict[str, Any]) -> tuple[object, ...]:
    text = " ".join(" ".join(part["text"] for part in passage["content"]).split())
    short = text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
    return f"{passage['score']:.3f}", passage["file_id"], passage["filename"], short
