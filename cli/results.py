"""`nightmill results JOB`: what a job has answered, as it is or beside what was asked."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from cli.options import ApiKey, DataDir, Url
from cli.terminal import byte_output, say
from cli.trouble import Trouble
from cli.wholefile import require_writable, whole

if TYPE_CHECKING:
    from cli.joining import Row
    from cli.server import Server
    from cli.snapshot import Snapshot


def results(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as `nightmill jobs` shows it.")],
    join: Annotated[bool, typer.Option("--join", help="Each answer beside its input, in the input's order.")] = False,
    format_: Annotated[
        Literal["jsonl", "csv", "parquet"],
        typer.Option("--format", help="The last two are always joined. In csv null and an empty text look the same."),
    ] = "jsonl",
    output: Annotated[Path | None, typer.Option(help="Write here instead of to standard output.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Write a job's results. Of one that still runs: the lines that are finished, as they come."""
    from cli.server import connect
    from cli.snapshot import Snapshot
    from cli.tables import writer_of
    from jobs.requests.endpoints import EMBEDDINGS

    if output:
        require_writable(output)
    with connect(url, api_key, data_dir) as server:
        shown = server.get(f"/jobs/{job}")
        found = Snapshot.of(shown)
        if not join and format_ == "jsonl":
            _raw(server, found, output)
            return
        if not found.ended:
            raise Trouble(f"{job} is {found.state}; its results can be joined when it has ended")
        with _joined(server, found, shown["overrides"]) as rows:
            count = writer_of(format_, vectors=shown["endpoint"] == EMBEDDINGS)(rows, output)
    say(f"{count} results{f': {output}' if output else ''}", err=True)


def _raw(server: "Server", job: "Snapshot", output: Path | None) -> None:
    """OpenAI's own lines."""
    with ExitStack() as stack:
        out = stack.enter_context(whole(output)) if output else byte_output()
        if not job.ended:
            out.writelines(line + b"\n" for line in stack.enter_context(server.finished(job.id)))
            return
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for file_id in filter(None, (job.output_file_id, job.error_file_id)):
            server.download(file_id, folder / file_id)
            with (folder / file_id).open("rb") as content:
                out.writelines(content)


@contextmanager
def _joined(server: "Server", job: "Snapshot", overrides: "Row") -> Iterator[Iterator["Row"]]:
    """The rows, from copies of the job's three files."""
    from cli.joining import joined

    if not job.input_file_id:
        raise Trouble(f"{job.id} has no input file")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def fetched(file_id: str | None) -> BinaryIO | list[bytes]:
            if not file_id:
                return []
            server.download(file_id, folder / file_id)
            return stack.enter_context((folder / file_id).open("rb"))

        inputs, outputs, errors = map(fetched, (job.input_file_id, job.output_file_id, job.error_file_id))
        yield joined(inputs, outputs, errors, overrides)
