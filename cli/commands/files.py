"""`nightmill files`: the files of a project, from upload to deletion."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.output_files import require_writable
from cli.terminal import moment, say, show_json

app = Group("Upload, list, download and delete files.")
Id = Annotated[str, typer.Argument(metavar="FILE", help="The file's id, as `nightmill files list` shows it.")]
Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]


@app.command()
def upload(
    options: ServerOptions,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="The files to upload.")],
    purpose: Annotated[Purpose, typer.Option(help="What the files are for.")] = "batch",
) -> None:
    """Upload files and print the id of each."""
    for path in paths:
        file_id = options.server.upload(path, purpose)
        options.show({"id": file_id, "path": str(path), "purpose": purpose}, file_id)


@app.command("list")
def list_(
    options: ServerOptions,
    purpose: Annotated[str, typer.Option(help="Only files of this purpose, such as batch_output.")] = "",
    limit: Limit = 20,
) -> None:
    """List the files of your project, the newest first."""
    head = ("file", "name", "purpose", "bytes", "created", "expires")
    options.show_entries(options.server.pages("/files", {"purpose": purpose} if purpose else {}, limit), head, _row)


@app.command()
def get(options: ServerOptions, file: Id) -> None:
    """Show the name, size, purpose and dates of a file."""
    shown = options.server.get(f"/files/{file}")
    options.show(shown, *(f"{name}: {value}" for name, value in shown.items()))


@app.command()
def download(
    options: ServerOptions,
    file: Id,
    output: Annotated[Path | None, typer.Option(help="Write here instead of under the file's own name.")] = None,
) -> None:
    """Download the content of a file into the current folder. `--output /dev/stdout` prints it."""
    path = output or Path(Path(options.server.get(f"/files/{file}")["filename"]).name)
    require_writable(path)
    options.server.download(file, path)
    if options.as_json:
        show_json({"id": file, "path": str(path)})
    else:
        say(str(path), err=True)


@app.command()
def delete(
    options: ServerOptions, files: Annotated[list[str], typer.Argument(metavar="FILE...", help="The ids of the files.")]
) -> None:
    """Delete files, also from all vector stores. Jobs that read them go on."""
    for file in files:
        options.show(options.server.delete(f"/files/{file}"), f"{file} deleted")


def _row(file: dict[str, Any]) -> tuple[object, ...]:
    created, expires = moment(file["created_at"]), moment(file["expires_at"])
    return file["id"], file["filename"], file["purpose"], file["bytes"], created, expires
