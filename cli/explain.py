"""`nightmill explain JOB`: why it waits, why it failed, and what became of its lines, with examples."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import ApiKey, DataDir, Url
from cli.trouble import Trouble

if TYPE_CHECKING:
    from cli.server import Server
    from cli.snapshot import Snapshot

_EXAMPLES = 3
_WIDTH = 100  # characters of a message that are shown

_WAITS = {
    "waiting for model": "no live worker serves {model}; `nightmill workers` shows what each serves",
    "waiting for pause": "its queue, model or project is paused; `nightmill workers` shows what is",
    "waiting for time": "it was submitted to begin later",
    "waiting for vectors": "the vector database cannot be reached; what is embedded is written when it is back",
    "waiting for disk": "there is too little free space for results; it goes on when there is more",
}


def explain(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as `nightmill jobs` shows it.")],
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Say why a job waits or failed, and group its lines by what became of them, with examples."""
    from cli.server import connect
    from cli.snapshot import Snapshot

    with connect(url, api_key, data_dir) as server:
        shown = server.get(f"/jobs/{job}")
        found = Snapshot.of(shown)
        for line in (*_standing(found), *_rejected(found), *_answered(found), *_failed(server, found)):
            print(line)


def _standing(job: "Snapshot") -> Iterator[str]:
    yield f"{job.id} ({job.kind}, {job.model or 'no model yet'}): {job.standing}, {job.done} of {job.total or '?'} done"
    if job.waiting_for in _WAITS:
        yield f"  it waits: {_WAITS[job.waiting_for].format(model=job.model or 'its model')}"
    elif job.queue_position:
        yield f"  it waits: {job.queue_position} jobs of its project come before it"
    if job.pace:
        yield f"  it makes {job.pace}"


def _rejected(job: "Snapshot") -> Iterator[str]:
    """What was wrong with the input, by code."""
    from cli.snapshot import fault

    groups: dict[str, list[Any]] = {}
    for error in job.errors:
        groups.setdefault(str(error.get("code")), []).append(error)
    for code, errors in groups.items():
        yield f"  {len(errors)} x {code}"
        yield from (f"      {fault(error)}" for error in errors[:_EXAMPLES])


def _answered(job: "Snapshot") -> Iterator[str]:
    reasons = job.outcomes.get("finish_reasons", {})
    if reasons:
        yield "  answers ended by " + ", ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
    if job.outcomes.get("empty"):
        yield f"  {job.outcomes['empty']} of the answers are empty"
    if reasons.get("length"):
        yield "  those that ended by length were cut off: ask for more tokens, or `nightmill retry` with --override"


def _failed(server: "Server", job: "Snapshot") -> Iterator[str]:
    """The failed lines by code, as many as there are and a few of them."""
    errors = job.outcomes.get("errors", {})
    if not errors:
        return
    examples = (_files if job.vector_store_id else _examples)(server, job, errors)
    for code, count in sorted(errors.items(), key=lambda pair: -pair[1]):
        yield f"  {count} x {code}"
        yield from examples.get(code, ())
    if job.ended:
        yield f"  `nightmill retry {job.id}` runs these again as a new job"


def _examples(server: "Server", job: "Snapshot", wanted: Iterable[str]) -> dict[str, list[str]]:
    import json

    from cli.joining import error_of

    found: dict[str, list[str]] = {code: [] for code in wanted}
    source = server.content(job.error_file_id) if job.error_file_id else server.finished(job.id)
    with source as lines:
        for line in lines:
            result = json.loads(line)
            code, message = error_of(result)
            if code in found and len(found[code]) < _EXAMPLES:
                found[code].append(f"      {result['custom_id']}: {_short(message)}")
            if all(len(some) == _EXAMPLES for some in found.values()):
                break
    return found


def _files(server: "Server", job: "Snapshot", wanted: Iterable[str]) -> dict[str, list[str]]:
    """Of files that were to come into a vector store, what is said of those that did not."""
    found: dict[str, list[str]] = {code: [] for code in wanted}
    store = f"/vector_stores/{job.vector_store_id}"
    files = f"{store}/indexes/{job.vector_store_index_id}/files"
    if job.id.startswith("vsfb_"):
        files = f"{store}/file_batches/{job.id}/files"
    try:
        page = server.get(f"{files}?filter=failed&limit=100")
    except Trouble:  # the store is gone
        return found
    for file in page["data"]:
        error = file["last_error"] or {}
        if len(found.get(error.get("code", ""), range(_EXAMPLES))) < _EXAMPLES:
            found[error["code"]].append(f"      {file['id']}: {_short(error['message'])}")
    return found


def _short(message: str | None) -> str:
    text = " ".join((message or "").split())
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
