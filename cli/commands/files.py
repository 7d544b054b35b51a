"""`nightmill files`: the files of a project, from upload to deletion."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli.client.server import connect
from cli.groups import Group
from cli.options import ApiKey, AsJson, DataDir, Limit, Url
from cli.output_files import require_writable
from cli.terminal import moment, say, show, show_entries, show_json

app = Group("Upload, list, download and delete files.")
Id = Annotated[str, typer.Argument(metavar="FILE", help="The file's id, as `nightmill files list` shows it.")]
Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]


@app.command()
def upload(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="The files to upload.")],
    purpose: Annotated[Purpose, typer.Option(help="What the files are for.")] = "batch",
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Upload files and print the id of each."""
    with connect(url, api_key, data_dir) as server:
        for path in paths:
            file_id = server.upload(path, purpose)
            show({"id": file_id, "path": str(path), "purpose": purpose}, file_id, as_json=as_json)


@app.command("list")
def list_(
    purpose: Annotated[str, typer.Option(help="Only files of this purpose, such as batch_output.")] = "",
    limit: Limit = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """List the files of your project, the newest first."""
    with connect(url, api_key, data_dir) as server:
        entries = server.pages("/files", {"purpose": purpose} if purpose else {}, limit)
    head = ("file", "name", "purpose", "bytes", "created", "expires")
    show_entries(entries, head, _row, as_json=as_json, has_more=entries.has_more)


@app.command()
def get(file: Id, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = None) -> None:
    """Show the name, size, purpose and dates of a file."""
    with connect(url, api_key, data_dir) as server:
        shown = server.get(f"/files/{file}")
    show(shown, *(f"{name}: {value}" for name, value in shown.items()), as_json=as_json)


@app.command()
def download(
    file: Id,
    output: Annotated[Path | None, typer.Option(help="Write here instead of under the file's own name.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Download the content of a file into the current folder. `--output /dev/stdout` prints it."""
    with connect(url, api_key, data_dir) as server:
        path = output or Path(Path(server.get(f"/files/{file}")["filename"]).name)
        require_writable(path)
        server.download(file, path)
    if as_json:
        show_json({"id": file, "path": str(path)})
    else:
        say(str(path), err=True)


@app.command()
def delete(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="The ids of the files.")],
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Delete files, also from all vector stores. Jobs that read them go on."""
    with connect(url, api_key, data_dir) as server:
        for file in files:
            show(server.delete(f"/files/{file}"), f"{file} deleted", as_json=as_json)


def _row(file: dict[str, Any]) -> tuple[object, ...]:
    created, expires = moment(file["created_at"]), moment(file["expires_at"])
    return file["id"], file["filename"], file["purpose"], file["bytes"], created, expires
