"""Runs of evals: upload their items, wait for their ends, and pair their output items."""

import csv
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from cli.client.progress import follow
from cli.client.server import Server, ServerUnavailable
from cli.errors import CliError
from cli.terminal import say

if TYPE_CHECKING:
    from jobs.evals.comparison import Pairing

_PAGE: Final = 100
_INTERRUPTED: Final = 130

Item = dict[str, Any]


def eval_of(server: Server, run_id: str) -> str:
    """Return the id of the eval of a run. Raises: CliError."""
    eval_id = server.get(f"/jobs/{run_id}").get("eval_id")
    if not eval_id:
        raise CliError(f"{run_id} is no run of an eval")
    return str(eval_id)


def find_baseline(server: Server, run_id: str) -> dict[str, Any]:
    """Return a run that is complete. Raises: CliError."""
    run = server.get(f"/evals/{eval_of(server, run_id)}/runs/{run_id}")
    if run["status"] != "completed":
        why = f" ({run['error']['message']})" if run["error"] else ""
        raise CliError(f"{run_id} is {run['status']}{why}: name a run that is completed")
    return run


def await_end(server: Server, eval_id: str, run_id: str, advice: str = "") -> dict[str, Any]:
    """Show the progress of a run, and return the run when it has ended.

    Ctrl-C, and a server that stays away, leave the run as it is: what is printed then says how to wait again, by
    `advice` or by `evals watch`.

    Raises:
        ServerUnavailable: the server does not come back.
    """
    goes_on = f"{run_id} goes on: {advice or f'`nightmill evals watch {run_id}` waits for it'}"
    try:
        steps = (job["id"] for job in server.get(f"/jobs/{run_id}/graph")["jobs"] if job["kind"] == "sampling")
        for job_id in (*steps, run_id):
            follow(server, job_id)
        return server.get(f"/evals/{eval_id}/runs/{run_id}")
    except KeyboardInterrupt:
        say("", err=True)
        say(goes_on, err=True)
        raise typer.Exit(_INTERRUPTED) from None
    except ServerUnavailable as error:
        raise ServerUnavailable(f"{error}\n{goes_on}") from error


def items_path(server: Server, run_id: str) -> str:
    """Return the path of the output items of a run. Raises: CliError."""
    return f"/evals/{eval_of(server, run_id)}/runs/{run_id}/output_items"


def output_items(server: Server, path: str) -> Iterator[Item]:
    """Yield the output items at a path, page by page."""
    query: dict[str, Any] = {"limit": _PAGE}
    while True:
        page = server.get(path, query)
        yield from page["data"]
        if not page["has_more"]:
            return
        query["after"] = page["last_id"]


def rows_of(server: Server, path: str) -> Iterator[Item]:
    """Yield each item of a run once, however many samples it has, as the rows of a file of items."""
    seen = set[int]()
    for output in output_items(server, path):
        if output["datasource_item_id"] not in seen:
            seen.add(output["datasource_item_id"])
            yield {"item": output["datasource_item"]}


def pair_runs(
    server: Server, first: str, second: str, slice_by: str = "", worst: int = 0
) -> tuple["Pairing", list[tuple[Item, Item]]]:
    """Return the pairing of two runs, and both output items of up to `worst` items with the largest regressions.

    Raises: CliError.
    """
    from jobs.evals import comparison

    paths = [items_path(server, run_id) for run_id in (first, second)]
    try:
        pairing = comparison.pair_items(output_items(server, paths[0]), output_items(server, paths[1]), slice_by)
    except comparison.TooManySlices as error:
        raise CliError(str(error)) from None
    if not pairing.pairs:
        raise CliError("the runs have no item in common")
    pairs = comparison.regressions(pairing.pairs, worst)
    return pairing, [
        (server.get(f"{paths[0]}/{pair.first.id}"), server.get(f"{paths[1]}/{pair.second.id}")) for pair in pairs
    ]


def upload_items(server: Server, rows: Iterable[Item], name: str, key: str) -> str:
    """Upload items, each on a line as the server reads them; return the id of the file."""
    with tempfile.TemporaryDirectory(prefix="nightmill-") as folder:
        lines = Path(folder) / f"{name}.jsonl"
        with lines.open("w", encoding="utf-8") as out:
            for row in rows:
                line = row if isinstance(row.get("item"), dict) else {"item": row}
                out.write(json.dumps(line) + "\n")
        return server.upload(lines, "evals", key=key)


def read_items(data: Path) -> Iterator[Item]:
    """Yield the items of a file: of a .csv file its rows, of another file its lines, which are JSON objects."""
    with data.open(encoding="utf-8-sig", newline="") as file:
        if data.suffix == ".csv":
            yield from csv.DictReader(file)
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise CliError(f"{data}: line {number} is no JSON object")
            yield row
