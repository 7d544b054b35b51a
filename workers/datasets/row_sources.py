"""The sources of a version: a function for each type, which reads rows.

    file_id                          the lines of a file, as they are
    stored_completions, responses    stored answers of the project, by the ids that the request has found
    eval_run                         output items of a run, all or those of a status
    batch                            answers of a batch, each with the messages of its request

Answers and output items become rows of evals, `{"item", "sample"}`, or of trainings, `{"messages"}`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from jobs.batches import lines
from jobs.batches.lines import Bad
from jobs.errors import NotFound
from jobs.evals.runs import Evaluation
from jobs.evals.samples import sample_from_answer, sample_from_message
from jobs.evals.tables import EvalRun
from jobs.files.tables import File
from jobs.ledger.tables import Job
from jobs.requests.endpoints import CHAT
from workers.batches.finishing import outputs_of
from workers.evals import shown
from workers.evals.item_sources import LineItems, StoredChatItems, StoredResponseItems, is_deep
from workers.runtime.context import Context

Source = Mapping[str, Any]
_STORED: Final[Mapping[str, type[LineItems]]] = {
    "stored_completions": StoredChatItems,
    "responses": StoredResponseItems,
}
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class DatasetRow(NamedTuple):
    """A row: its text, its value, and the number of its line or item in its source, from 1."""

    raw: bytes
    value: dict[str, Any]
    number: int


Rows = Iterator[DatasetRow | Bad]


def rows_of(context: Context, job: Job, sources: Sequence[Source]) -> Rows:
    """Yield the rows of all sources in their order, and the errors of rows. `param` of an error names its source."""
    for index, source in enumerate(sources):
        for row in SOURCES[source["type"]](context, job, source):
            yield Bad(row.code, row.message, row.line, f"sources[{index}]") if isinstance(row, Bad) else row


def _file_rows(context: Context, _job: Job, source: Source) -> Rows:
    try:
        with context.storage.reader(source["path"]) as handle:
            for text in lines.read(handle):
                yield _row_of(text.raw, text.number)
    except NotFound:
        yield Bad("file_not_found", f"The file '{source['id']}' is gone.")


def _row_of(raw: bytes | None, number: int) -> DatasetRow | Bad:
    if raw is None:
        return Bad("line_too_long", "This line is too long.", number)
    try:
        value = _decode(raw)
        if is_deep(raw):
            return Bad("invalid_json_line", "This line is nested too deeply.", number)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Bad("invalid_json_line", "This line is not parseable as a JSON object.", number)
    return DatasetRow(raw, value, number)


def _rows_of_answers(context: Context, job: Job, source: Source) -> Rows:
    items = Evaluation(eval_id="", items=source["path"], item_schema={}, criteria=[])
    for case in _STORED[source["type"]](context, job, items, checked=False).cases():
        if isinstance(case, Bad):
            yield case
        else:
            yield from _answer_rows(source, case.row.item, case.row.sample, case.row.shown, case.line)


def _run_rows(context: Context, _job: Job, source: Source) -> Rows:
    run_id, status = source["run_id"], source.get("status")
    gone = Bad("run_not_found", f"The run '{run_id}' is gone.")
    with context.db.read() as session:
        if session.get(EvalRun, run_id) is None:
            yield gone
            return
    try:
        for number, raw in enumerate(outputs_of(context, run_id), 1):
            item = _decode(raw)
            if status in (None, item["status"]):
                dialogue = item["sample"]
                output = dialogue.get("output") or []
                sample = sample_from_message(output[0]) if output else None
                yield from _answer_rows(source, item["datasource_item"], sample, dialogue, number)
    except NotFound:
        yield gone


def _batch_rows(context: Context, _job: Job, source: Source) -> Rows:
    """Yield the rows of the answers of a batch. Its output has them in the order of its input."""
    gone = Bad("batch_output_not_found", f"The batch '{source['batch_id']}' has no answers, or its files are gone.")
    with context.db.read() as session:
        batch = session.get(Job, source["batch_id"])
        output = session.get(File, batch.output_file_id) if batch and batch.output_file_id else None
    if batch is None or output is None or output.deleted_at is not None:
        yield gone
        return
    endpoint = batch.endpoint or ""
    try:
        with context.storage.reader(batch.input_path or "") as asked, context.storage.reader(output.path) as answered:
            requests = (_decode(text.raw or b"{}") for text in lines.read(asked))
            for text in lines.read(answered):
                answer = _decode(text.raw or b"{}")
                custom_id = answer["custom_id"]
                body = next(request for request in requests if request["custom_id"] == custom_id)["body"]
                given = body.get("messages" if endpoint == CHAT else "input") or []
                messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
                reply = answer["response"]["body"]
                sample = sample_from_answer(endpoint, reply)
                item = {"custom_id": custom_id, "input": messages, "model": reply.get("model")}
                yield from _answer_rows(source, item, sample, shown.of_item(sample, messages, body, reply), text.number)
    except NotFound:
        yield gone


def _answer_rows(
    source: Source, item: dict[str, Any], sample: dict[str, Any] | None, dialogue: Mapping[str, Any], number: int
) -> Iterator[DatasetRow]:
    """Yield the row of an answer in the format of its source; none of messages where the model has not answered."""
    if source.get("format") == "messages":
        output = dialogue.get("output") or []
        value: dict[str, Any] = {"messages": [*(dialogue.get("input") or []), *output]}
        if not output:
            return
    else:
        value = {"item": item} if sample is None else {"item": item, "sample": sample}
    yield DatasetRow(msgspec.json.encode(value), value, number)


#: The function of each type of source. What is added here is added to the types in `api.datasets.schemas`.
SOURCES: Final[Mapping[str, Callable[[Context, Job, Source], Rows]]] = {
    "file_id": _file_rows,
    **dict.fromkeys(_STORED, _rows_of_answers),
    "eval_run": _run_rows,
    "batch": _batch_rows,
}
