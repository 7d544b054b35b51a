"""`nightmill stores`: vector stores, their files, and searches."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client.server import Server, connect
from cli.commands.jobs import watched
from cli.errors import CliError
from cli.groups import Group
from cli.options import ApiKey, AsJson, DataDir, Limit, Store, Url
from cli.terminal import moment, show, show_entries

app = Group("Create vector stores, add files to them and search them.")
_WIDTH = 300  # characters of a passage that are shown


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name for people; it need not be unique.")] = "",
    model: Annotated[str, typer.Option(help="The embedding model. Else the deployment's default.")] = "",
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Create an empty vector store and print its id."""
    given = {"name": name, "embedding_model": model}
    with connect(url, api_key, data_dir) as server:
        made = server.post("/vector_stores", {key: value for key, value in given.items() if value})
    show(made, made["id"], as_json=as_json)


@app.command("list")
def list_(
    limit: Limit = 20, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = None
) -> None:
    """List the vector stores of your project, the newest first."""
    with connect(url, api_key, data_dir) as server:
        entries = server.pages("/vector_stores", {}, limit)
    head = ("store", "name", "status", "files", "failed", "bytes", "model", "created")
    show_entries(entries, head, _store_row, as_json=as_json, has_more=entries.has_more)


@app.command()
def add(
    store: Store,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Paths to upload, or ids of uploaded files.")],
    wait: Annotated[bool, typer.Option(help="Wait until the files can be searched.")] = True,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Add files to a vector store. Exit code 1 if a file could not be read."""
    for file in files:
        if not (_is_id(file) or Path(file).is_file()):
            raise CliError(f"{file} is neither a file here nor the id of an uploaded file; nothing was added")
    with connect(url, api_key, data_dir) as server:
        ids = [_file_id(server, file) for file in files]
        made = server.post(f"/vector_stores/{store}/file_batches", {"file_ids": ids})
        if not (wait and as_json):
            show(made, made["id"], as_json=as_json)
        if wait:
            ended = watched(server, made["id"], None, as_json=as_json)
            if ended.failed:
                raise CliError(f"{ended.failed} files failed; `nightmill explain {made['id']}` says why")


@app.command()
def files(
    store: Store,
    limit: Limit = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """List the files of a vector store, the newest first."""
    with connect(url, api_key, data_dir) as server:
        entries = server.pages(f"/vector_stores/{store}/files", {}, limit)
    show_entries(
        entries, ("file", "status", "bytes", "added", "error"), _file_row, as_json=as_json, has_more=entries.has_more
    )


@app.command()
def search(
    store: Store,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.")],
    limit: Annotated[int, typer.Option(min=1, max=50, help="How many passages, the best first.")] = 5,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Print the passages of a vector store that answer a query best."""
    with connect(url, api_key, data_dir) as server:
        body = {"query": query, "max_num_results": limit}
        passages = server.post(f"/vector_stores/{store}/search", body)["data"]
    show_entries(passages, ("score", "file", "name", "passage"), _passage_row, as_json=as_json)


@app.command()
def remove(
    store: Store,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="The ids of the files.")],
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Remove files from a vector store. The files themselves stay."""
    with connect(url, api_key, data_dir) as server:
        for file in files:
            show(server.delete(f"/vector_stores/{store}/files/{file}"), f"{file} removed", as_json=as_json)


@app.command()
def delete(
    store: Store, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = None
) -> None:
    """Delete a vector store. Its files stay."""
    with connect(url, api_key, data_dir) as server:
        show(server.delete(f"/vector_stores/{store}"), f"{store} deleted", as_json=as_json)


def _file_id(server: Server, file: str) -> str:
    """Return the id of an uploaded file. Upload the file when `file` is a path."""
    return file if _is_id(file) else server.upload(Path(file), "assistants")


def _is_id(file: str) -> bool:
    return file.startswith("file-") and not Path(file).exists()


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
