"""Ask the models that were tuned elsewhere for answers while they are served, and keep the answers as a run.

validation file ─▶ N prompts ─▶ a batch there, or chats ─▶ answers ─▶ a run here, graded against the file: the baseline
                                                              └─▶ with `distill` rows to train on

Asking costs money, so nothing is asked twice: a batch there has the name of the capture in its metadata, and each
answer of a chat is stored here before the next one is asked for.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from cli.client.server import ObjectNotFound, Server, ServerUnavailable
from cli.errors import CliError
from cli.migrate.apply import MigrationTarget
from cli.migrate.outcomes import MigrationKind, MigrationOutcome, ReportRow
from cli.migrate.plan import ORIGIN, lines_file
from cli.migrate.server import ServerSource, entries
from cli.migrate.source import Object, id_of
from cli.terminal import say

_CHAT: Final = "/v1/chat/completions"
_ENDED: Final = ("completed", "failed", "expired", "cancelled")
_MAX_PAUSE: Final = 60.0  # seconds between two looks at a batch
_ITEM: Final = {
    "type": "object",
    "properties": {"messages": {"type": "array"}, "reference": {"type": "string"}},
    "required": ["messages", "reference"],
}
_CRITERION: Final = {
    "type": "text_similarity",
    "name": "like the reference",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.reference }}",
    "evaluation_metric": "rouge_l",
    "pass_threshold": 0.5,
}


@dataclass(frozen=True, slots=True)
class Capture:
    """The prompts for one tuned model, each with the answer of the file, which `reference` is."""

    name: str
    job_id: str
    model: str
    items: tuple[Object, ...]
    remark: str


def capture(source: ServerSource, here: Server, count: int, *, applied: bool, distill: bool) -> Iterator[ReportRow]:
    """Yield a row for each tuned model of a source, and with `distill` one for its training rows."""
    there, target = source.server, MigrationTarget(here)
    for job in source.fine_tuning_jobs():
        if job.get("status") != "succeeded" or not job.get("fine_tuned_model"):
            continue
        name = f"{job.get('id')}.capture-{count}"
        try:
            prompts = _prompts(source, job, name, count)
            if run_id := _find_run(target, prompts):
                yield ReportRow(MigrationKind.EVAL_RUN, name, run_id, MigrationOutcome.PRESENT)
                answers = None
            else:
                asks = f"{len(prompts.items)} prompts are asked of {prompts.model}, for which that server charges"
                reason = "; ".join(filter(None, [asks, prompts.remark]))
                row = ReportRow(MigrationKind.EVAL_RUN, name, None, MigrationOutcome.DIFFERENT, reason)
                answers = _answers(there, target, prompts) if applied else None
                yield row if answers is None else _store_run(target, prompts, answers, row)
            if distill:
                yield _store_rows(there, target, prompts, answers, applied=applied)
        except ServerUnavailable:
            raise
        except CliError as error:
            yield ReportRow(MigrationKind.EVAL_RUN, name, None, MigrationOutcome.FAILED, str(error))


def _prompts(source: ServerSource, job: Object, name: str, count: int) -> Capture:
    """Return the first prompts of the validation file of a job. Raises CliError for a file that is not there."""
    file_id = job.get("validation_file") or job.get("training_file")
    remark = "" if job.get("validation_file") else "its job has no validation file: it was trained on these prompts"
    file = next((file for file in source.files() if file.object.get("id") == file_id), None)
    if file is None or file.content is None:
        raise CliError(f"the content of {file_id} is not there, which has the prompts")
    with file.content() as path, path.open("rb") as lines:
        items = tuple(islice(filter(None, map(_item, lines)), count))
    if not items:
        raise CliError(f"{file_id} has no rows of messages that end with an answer")
    return Capture(name, id_of(job), str(job["fine_tuned_model"]), items, remark)


def _item(line: bytes) -> Object | None:
    """Return the prompt and the answer of a training row, None for a row without them."""
    try:
        *messages, last = json.loads(line)["messages"]
        answer = last["content"] if last["role"] == "assistant" else None
    except (ValueError, LookupError, TypeError):
        return None
    return {"messages": messages, "reference": answer} if messages and isinstance(answer, str) else None


# ── asking ──


def _answers(there: Server, target: MigrationTarget, prompts: Capture) -> list[Object | None]:
    """Return the answer to each prompt as a chat completion, None for a prompt that failed."""
    try:
        batches = list(entries(there, "/batches"))
    except ObjectNotFound:
        return [_chat_answer(there, target, prompts, number) for number in range(len(prompts.items))]
    names = ((batch, (batch.get("metadata") or {}).get(ORIGIN)) for batch in batches)
    batch = next((batch for batch, name in names if name == prompts.name), None) or _begin_batch(there, prompts)
    batch = _await_batch(there, batch)
    if not batch.get("output_file_id"):
        raise CliError(f"the batch {batch['id']} has no answers: its status is {batch['status']}")
    with TemporaryDirectory(prefix="nightmill-") as folder:
        path = Path(folder) / "answers.jsonl"
        there.download(batch["output_file_id"], path)
        with path.open("rb") as lines:
            answers = {line["custom_id"]: line.get("response") or {} for line in map(json.loads, lines)}
    return [
        answer.get("body") if answer.get("status_code") == 200 else None
        for answer in (answers.get(str(number), {}) for number in range(len(prompts.items)))
    ]


def _body(prompts: Capture, number: int) -> Object:
    return {"model": prompts.model, "messages": prompts.items[number]["messages"]}


def _begin_batch(there: Server, prompts: Capture) -> Object:
    """Begin a batch over the prompts. The request is not repeated: a batch whose answer was lost is found by name."""
    lines = [
        {"custom_id": str(number), "method": "POST", "url": _CHAT, "body": _body(prompts, number)}
        for number in range(len(prompts.items))
    ]
    with lines_file(lambda: iter(lines)) as path:
        file_id = there.upload(path, "batch", f"{prompts.name}.jsonl")
    body = {"input_file_id": file_id, "endpoint": _CHAT, "completion_window": "24h", "metadata": {ORIGIN: prompts.name}}
    return there.post_once("/batches", body)


def _await_batch(there: Server, batch: Object) -> Object:
    pause = there.timings.follow_look
    while batch["status"] not in _ENDED:
        counts = batch.get("request_counts") or {}
        say(f"{batch['id']} {batch['status']}: {counts.get('completed', 0)} of {counts.get('total', 0)}", err=True)
        threading.Event().wait(pause)
        pause = min(pause * 2, _MAX_PAUSE)
        batch = there.get(f"/batches/{batch['id']}")
    return batch


def _chat_answer(there: Server, target: MigrationTarget, prompts: Capture, number: int) -> Object:
    """Return the answer to a prompt that is stored here, or ask for it and store it."""
    answer_id = f"{prompts.name}.{number}"
    if stored := target.get(f"/chat/completions/{answer_id}"):
        return stored
    request = _body(prompts, number)
    body = {"imported_from": answer_id, "request": request, "response": there.complete(request)}
    return target.server.post("/chat/completions/imports", body)


# ── keeping ──


def _find_run(target: MigrationTarget, prompts: Capture) -> str | None:
    """Return the id of the run of a capture, None where there is none, or where it failed."""
    path = f"/evals/{prompts.job_id}.capture"
    runs = entries(target.server, f"{path}/runs") if target.get(path) else ()
    run_ids = (run["id"] for run in runs if _is_run(run, prompts.name))
    return next(run_ids, None)


def _is_run(run: Object, name: str) -> bool:
    return (run.get("metadata") or {}).get(ORIGIN) == name and run["status"] not in ("failed", "canceled")


def _store_run(target: MigrationTarget, prompts: Capture, answers: list[Object | None], row: ReportRow) -> ReportRow:
    """Store the answers as a run, which is graded here as any other run of its eval."""
    head = {
        "imported_from": f"{prompts.job_id}.capture",
        "name": f"{prompts.model} and its successors",
        "data_source_config": {"type": "custom", "item_schema": _ITEM, "include_sample_schema": True},
        "testing_criteria": [_CRITERION],
    }
    eval_id = target.server.post("/evals/imports", head)["id"]
    pairs = [(item, answer) for item, answer in zip(prompts.items, answers, strict=True) if answer]
    rows = [{"item": item, "sample": answer} for item, answer in pairs]
    file_id = _upload(target, f"{prompts.name}.jsonl", "evals", rows)
    body = {
        "name": prompts.model,
        "metadata": {ORIGIN: prompts.name},
        "data_source": {"type": "jsonl", "source": {"type": "file_id", "id": file_id}},
    }
    run = target.server.post(f"/evals/{eval_id}/runs", body)
    missing = len(prompts.items) - len(pairs)
    reason = f"{row.reason}; {missing} of them failed" if missing else row.reason
    return ReportRow(row.kind, row.origin_id, run["id"], row.outcome, reason)


def _store_rows(
    there: Server, target: MigrationTarget, prompts: Capture, answers: list[Object | None] | None, *, applied: bool
) -> ReportRow:
    """Store the answers as rows to train on. Where they were not asked for now, they are read again, at no cost."""
    name = f"{prompts.name}.distill"
    if present := target.files.get(f"{name}.jsonl"):
        return ReportRow(MigrationKind.FILE, name, present, MigrationOutcome.PRESENT)
    row = ReportRow(MigrationKind.FILE, name, None, MigrationOutcome.DIFFERENT, "the answers become rows to train on")
    if not applied:
        return row
    given = answers if answers is not None else _answers(there, target, prompts)
    rows = [
        {"messages": [*item["messages"], {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}]}
        for item, answer in zip(prompts.items, given, strict=True)
        if answer
    ]
    return ReportRow(row.kind, name, _upload(target, f"{name}.jsonl", "fine-tune", rows), row.outcome, row.reason)


def _upload(target: MigrationTarget, name: str, purpose: Any, rows: list[Object]) -> str:
    """Upload rows as a file, unless a file of this name is here; return the id."""
    if name not in target.files:
        with lines_file(lambda: iter(rows)) as path:
            target.files[name] = target.server.upload(path, purpose, name)
    return target.files[name]
