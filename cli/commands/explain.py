"""`nightmill explain JOB`: why it waits, why it failed, and what became of its lines, with examples."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client.joining import Row, answer_of, error_of
from cli.client.progress import Snapshot, fault
from cli.client.server import Server, connect
from cli.errors import CliError
from cli.options import ApiKey, AsJson, DataDir, Url
from cli.terminal import show
from jobs.requests.endpoints import COMPLETIONS, RESPONSES

_Finding = Callable[[Iterable[bytes], Mapping[str, int]], dict[str, list[str]]]

#: The field of a request that limits its answer, by endpoint.
_LIMITS = {RESPONSES: "max_output_tokens", COMPLETIONS: "max_tokens"}
_WAITS = {
    "waiting for model": "no live worker serves {model}; `nightmill workers` shows what each serves",
    "waiting for job": "these jobs have to complete first, see `nightmill graph`",
    "waiting for pause": "its queue, model or project is paused; `nightmill workers` shows what is",
    "waiting for time": "it was submitted to begin later",
    "waiting for vectors": "the vector database cannot be reached; what is embedded is written when it is back",
    "waiting for device": "engines on the device of its training end what they run, and are closed",
    "waiting for checkpoint": "its training is paused, and makes a checkpoint first",
    "waiting for disk": "there is too little free space for results; it goes on when there is more",
}


def explain(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as `nightmill jobs` shows it.")],
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Explain why a job waits or failed, and count its requests by outcome, with examples.

    The reason why a job is held up is known where the database of the deployment can be reached.
    """
    with connect(url, api_key, data_dir) as server:
        shown = server.get(f"/jobs/{job}")
        snapshot = Snapshot.of(shown)
        left, why = _left_alone(snapshot, data_dir), _held_up(server.url, snapshot, data_dir)
        standing = (*_standing(snapshot), *_waits_for(server, snapshot))
        findings = (
            *standing,
            *left,
            *why,
            *_rejected(snapshot),
            *_answered(server, snapshot),
            *_failed(server, snapshot),
        )
        lines = list(findings)
    show({"job": shown, "explanation": [line.strip() for line in lines]}, *lines, as_json=as_json)


def _standing(job: Snapshot) -> Iterator[str]:
    yield f"{job.id} ({job.kind}, {job.model or 'no model yet'}): {job.standing}, {job.done} of {job.total or '?'} done"
    if job.model_status and job.model_status["status"] == "loading":
        yield "  it waits: its model answers when it is loaded; `nightmill workers` shows the worker that loads it"
    elif job.waiting_for in _WAITS:
        yield f"  it waits: {_WAITS[job.waiting_for].format(model=job.model or 'its model')}"
    if job.pace:
        yield f"  it makes {job.pace}"


def _waits_for(server: Server, job: Snapshot) -> Iterator[str]:
    """Name the jobs that have to complete before this job begins."""
    if job.waiting_for == "waiting for job":
        from cli.commands.graph import unfinished

        yield from (f"      {line}" for line in unfinished(server.get(f"/jobs/{job.id}/graph")))


def _held_up(url: str, job: Snapshot, data_dir: Path | None) -> Iterator[str]:
    """Say why no worker has taken a job that neither runs nor reports what it waits for."""
    if job.ended or job.waiting_for or job.model_status or job.pace:
        return
    from cli.doctor import standstill

    yield from (f"  {line}" for line in standstill.reasons(url, job, data_dir))


def _left_alone(job: Snapshot, data_dir: Path | None) -> Iterator[str]:
    """Say whether the engine of the model is quarantined. Only the database of the deployment knows."""
    if job.waiting_for != "waiting for model":
        return
    from sqlalchemy.exc import SQLAlchemyError

    from cli.up.effective import opened, running
    from jobs.fleet import quarantine
    from jobs.fleet.models_file import ModelsFileError, Registry
    from jobs.ledger.tables import Job

    with suppress(CliError, ModelsFileError, SQLAlchemyError), opened(data_dir) as db, db.read() as session:
        if session.get(Job, job.id) is None:
            return
        aliases = Registry.load(running(data_dir)).aliases
        for row in quarantine.listed(session, aliases.get(job.model, job.model)):
            yield from (f"  {line}" for line in quarantine.describe(row))
            yield f"  to fix it: correct what its log says, then `nightmill resume model {row.model}`"


def _rejected(job: Snapshot) -> Iterator[str]:
    """List the errors of the input by code."""
    groups: dict[str, list[Any]] = {}
    for error in job.errors:
        groups.setdefault(str(error.get("code")), []).append(error)
    for code, errors in groups.items():
        yield f"  {len(errors)} x {code}"
        yield from (f"      {fault(error)}" for error in errors[:EXAMPLES])


def _answered(server: Server, job: Snapshot) -> Iterator[str]:
    """Count the answers by finish reason, with examples of answers that are truncated or empty."""
    reasons, empty = job.outcomes.get("finish_reasons", {}), job.outcomes.get("empty", 0)
    counts = {reason: count for reason, count in reasons.items() if reason != "stop"}
    counts |= {EMPTY: empty} if empty else {}
    examples = _examples(server, job, job.output_file_id, answered, counts)
    if reasons:
        yield "  answers ended by " + ", ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
    yield from (f"      {name}: {text}" for name, some in examples.items() if name != EMPTY for text in some)
    if empty:
        yield f"  {empty} of the answers are empty"
        if ids := examples.get(EMPTY):
            yield f"      {', '.join(ids)}"
    if reasons.get("length"):
        yield f"  {reasons['length']} cut off at the token limit; with a higher limit, run these again as a new job:"
        yield f"      {_with_more_tokens(job)}" if job.ended else "      `nightmill retry`, when this job has ended"


def _with_more_tokens(job: Snapshot) -> str:
    """Return the command that runs the lines that were cut off again."""
    limit = _LIMITS.get(job.endpoint, "max_completion_tokens")
    return f"nightmill retry {job.id} --which length --override '{{\"{limit}\": 4096}}'"


def _failed(server: Server, job: Snapshot) -> Iterator[str]:
    """Count the failed lines by code, with examples."""
    errors = job.outcomes.get("errors", {})
    if not errors:
        return

    if job.vector_store_id:
        examples = _files(server, job, errors)
    else:
        examples = _examples(server, job, job.error_file_id, failed, errors)
    for code, count in sorted(errors.items(), key=lambda pair: -pair[1]):
        yield f"  {count} x {code}"
        yield from (f"      {text}" for text in examples.get(code, ()))
    if job.ended:
        yield f"  `nightmill retry {job.id}` runs these again as a new job"


def _examples(
    server: Server, job: Snapshot, file_id: str | None, finding: _Finding, counts: Mapping[str, int]
) -> dict[str, list[str]]:
    """Return examples of the lines in `counts`: from the file, or from the finished lines of a live job."""
    if not counts:
        return {}
    try:
        with server.content(file_id) if file_id else server.finished(job.id) as lines:
            return finding(lines, counts)
    except CliError:  # the file was removed or has expired: there are no examples
        return {}


def _files(server: Server, job: Snapshot, codes: Iterable[str]) -> dict[str, list[str]]:
    """Return error messages of files that failed to come into a vector store, by code."""
    examples: dict[str, list[str]] = {code: [] for code in codes}
    store = f"/vector_stores/{job.vector_store_id}"
    files = f"{store}/indexes/{job.vector_store_index_id}/files"
    if job.id.startswith("vsfb_"):
        files = f"{store}/file_batches/{job.id}/files"
    try:
        page = server.get(f"{files}?filter=failed&limit=100")
    except CliError:  # the store was deleted
        return examples
    for file in page["data"]:
        error = file["last_error"] or {}
        if len(examples.get(error.get("code", ""), range(EXAMPLES))) < EXAMPLES:
            examples[error["code"]].append(f"{file['id']}: {short(error['message'])}")
    return examples


EXAMPLES = 3
EMPTY = "empty"

_WIDTH = 100  # characters of a message that are shown
_RESPONSES = {"completed": "stop", "max_output_tokens": "length"}


def answered(lines: Iterable[bytes], counts: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the beginnings of answers by finish reason and EMPTY. `counts` counts the lines of each."""

    def texts_of(result: Row) -> Iterator[tuple[str, str]]:
        for word in outcomes_of(result):
            answer = answer_of("", result["response"]["body"])
            text = short(answer) if isinstance(answer, str) and word != EMPTY else ""
            yield word, f"{short(result['custom_id'])}: {text}" if text else short(result["custom_id"])

    return _found(lines, counts, texts_of)


def failed(lines: Iterable[bytes], counts: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the error messages of failed lines by code."""

    def texts_of(result: Row) -> Iterator[tuple[str, str]]:
        code, message = error_of(result)
        if code:
            yield code, f"{result['custom_id']}: {short(message)}"

    return _found(lines, counts, texts_of)


def outcomes_of(result: Row) -> set[str]:
    """Return the finish reasons of one line, and EMPTY for an empty answer, as the workers count them."""
    body = (result["response"] or {}).get("body")
    if error_of(result)[0] or not isinstance(body, dict):
        return set()
    if isinstance(body.get("choices"), list):
        words = {choice.get("finish_reason") for choice in body["choices"]}
        empty = not any(map(_says_something, body["choices"]))
    elif body.get("status"):
        why = (body.get("incomplete_details") or {}).get("reason") or body["status"]
        words = {_RESPONSES.get(why, why)}
        empty = not any(map(_holds_something, body.get("output") or ()))
    else:
        return set()
    return words - {None} | ({EMPTY} if empty else set())


def short(message: str | None) -> str:
    """Return `message` as one line of at most 100 printable characters."""
    text = " ".join("".join(character if character.isprintable() else " " for character in message or "").split())
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _found(
    lines: Iterable[bytes], counts: Mapping[str, int], texts_of: Callable[[Row], Iterable[tuple[str, str]]]
) -> dict[str, list[str]]:
    examples: dict[str, list[str]] = {name: [] for name in counts}
    for line in lines:
        for name, text in texts_of(json.loads(line)):
            if len(examples.get(name, range(EXAMPLES))) < EXAMPLES:
                examples[name].append(text)
        if all(len(some) >= min(EXAMPLES, counts[name]) for name, some in examples.items()):
            break
    return examples


def _says_something(choice: Mapping[str, Any]) -> bool:
    message = choice.get("message")
    if message is None:
        return _filled(choice.get("text"))
    fields = ("tool_calls", "function_call", "refusal")
    return _filled(message.get("content")) or any(message.get(name) for name in fields)


def _holds_something(output: Mapping[str, Any]) -> bool:
    if output.get("type") == "message":
        return any(_filled(part.get("text")) or part.get("refusal") for part in output.get("content") or ())
    return output.get("type") != "reasoning"


def _filled(text: Any) -> bool:
    return bool(text.strip()) if isinstance(text, str) else bool(text)
