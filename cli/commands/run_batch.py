"""`nightmill run-batch`: `submit` with the files of vLLM's own batch runner, `vllm run-batch`.

All results are in one file, in the order of the input.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cli.client.progress import Snapshot
from cli.client.server import Server, connect
from cli.commands.jobs import watched
from cli.commands.submit import check_file
from cli.errors import CliError
from cli.options import ApiKey, DataDir, Url
from cli.output_files import require_writable, whole
from cli.terminal import say


def run_batch(
    context: typer.Context,
    input_file: Annotated[Path, typer.Option("-i", "--input-file", help="Requests, one a line, as for a batch.")],
    output_file: Annotated[Path, typer.Option("-o", "--output-file", help="The file for all results.")],
    model: Annotated[str, typer.Option(help="The model that the lines ask for.")],
    output_tmp_dir: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="The folder for results until the run has ended.")
    ] = None,
    window: Annotated[str, typer.Option(help="The time allowed, such as 90m, 6h, 24h or 7d.")] = "24h",
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Run a file as `vllm run-batch` does, on a running deployment. Flags of vLLM's engine are refused."""
    from cli.client.submission import first_request

    if context.args:
        raise CliError(
            f"{' '.join(context.args)}: the deployment has its engines already; leave these out, or write them into "
            "`engine_args` of the model in the models file"
        )
    for path in (input_file, output_file):
        if path.parts[:1] in (("http:",), ("https:",)):
            raise CliError(f"{path.parts[0]}//…: a path is taken, not a URL; fetch or send the file by another program")
    require_writable(output_file)
    endpoint, requested = first_request(input_file)
    if requested not in (None, model):
        raise CliError(
            f"{input_file}, line 1 asks for the model '{requested}', not for '{model}'; name that one instead"
        )
    with connect(url, api_key, data_dir) as server:
        file_id = server.upload(input_file)
        check_file(server, file_id, endpoint)
        request = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": window}
        batch = server.post("/batches", request)
        say(batch["id"], err=True)
        watched(server, batch["id"], partial(_save, requests=input_file, results=output_file, folder=output_tmp_dir))


def _save(server: Server, job: Snapshot, requests: Path, results: Path, folder: Path | None) -> None:
    """Write answers and errors of an ended job into one file, in the order of its requests."""
    from jobs.batches.joining import join_lines

    with tempfile.TemporaryDirectory(dir=folder) as name:
        answers, errors = Path(name) / "answers", Path(name) / "errors"
        for file_id, path in ((job.output_file_id, answers), (job.error_file_id, errors)):
            path.touch()
            if file_id:
                server.download(file_id, path)
        with requests.open("rb") as lines, answers.open("rb") as good, errors.open("rb") as bad, whole(results) as out:
            out.writelines(line for _, line in join_lines(lines, good, bad))
    say(f"results: {results}", err=True)
