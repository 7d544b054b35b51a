"""The cases of a run: each item with a sample of it and what judges answered about that, in the order of the items.

    items       12 {"item": …}      13 {"item": …}                         lines of a file
    samples     12.0.  12.1.        13.0.  13.1.                           records of a job of kind `sampling`
    judgements  12.0.key  12.1.key  13.1.key                               records of another job of that kind

All of them are read once, side by side: memory holds one item, and one shard's records of each job.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from jobs.batches import lines
from jobs.batches.lines import Bad, Text
from jobs.errors import NotFound
from jobs.evals.graders.base import Answer
from jobs.evals.runs import Evaluation, Sampling, steps_of
from jobs.evals.samples import NO_ANSWER, sample_from_answer, sample_from_given
from jobs.inference import responses, stored
from jobs.ledger.tables import Job
from jobs.requests.endpoints import CHAT, RESPONSES
from workers.batches.finishing import output_line, records_of, shards_of
from workers.batches.shard_writer import MAX_ERRORS
from workers.evals.earlier import Earlier, earlier_cases
from workers.middleware.schema_checker import BadSchema, SchemaChecker
from workers.runtime.context import Context

Row = TypeVar("Row")
_CHECKED_AT_ONCE: Final = 100
#: Deeper values could not be shown; bodies of requests have the same limit.
_MAX_DEPTH: Final = 100
_decode = msgspec.json.Decoder(dict).decode


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the input: its number from 0, the number of its line, and the sample that came with it, if any.

    `request` is the body to which the sample of a stored answer was given.
    """

    number: int
    line: int
    item: dict[str, Any]
    sample: dict[str, Any] | None
    request: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Case:
    """An item with its sample number `index`, and the answers of judges by criterion and key.

    `answer` is the output line of the sampled model; None where no model is asked. `earlier` is what the run has of the
    case that this run retries.
    """

    item: Item
    index: int
    answer: dict[str, Any] | None = None
    judgements: Mapping[int, Mapping[str, Answer]] = field(default_factory=dict)
    earlier: Earlier | None = None


def name_of(number: int, index: int, key: str = "") -> str:
    """Return the `custom_id` of a request about a sample of an item."""
    return f"{number}.{index}.{key}"


def _parts_of(name: str) -> tuple[tuple[int, int], str]:
    """Return the number of the item, the index of the sample, and the key in a `custom_id`."""
    number, index, key = name.split(".", 2)
    return (int(number), int(index)), key


def items_of(context: Context, run: Job, *, checked: bool) -> Iterator[Item | Bad]:
    """Yield the items of a run, or the errors of its lines; with `checked` also those by the schema of its items.

    Nothing follows the last of `MAX_ERRORS` errors.
    """
    payload = Evaluation.model_validate(run.payload)
    try:
        with context.storage.reader(payload.items) as handle:
            texts = lines.read(handle, context.config.batch_max_line_bytes)
            if payload.stored is None:
                read: Iterator[Item | Bad] = (_item(number, text) for number, text in enumerate(texts))
            else:
                read = _stored_items(context, texts, payload.stored)
            yield from until_many_errors(_checked(read, payload.item_schema, run.project_id) if checked else read)
    except NotFound:
        yield Bad("invalid_request", "The items of the run are gone.", None, "data_source")


def _stored_items(context: Context, texts: Iterator[Text], kind: str) -> Iterator[Item]:
    """Yield the stored answers that the lines name, without those that were deleted meanwhile."""
    endpoint, path = (CHAT, stored.completion_path) if kind == "stored_completions" else (RESPONSES, responses.path)
    for number, text in enumerate(texts):
        row = _decode(text.raw or b"")
        try:
            with context.storage.reader(path(row["id"])) as handle:
                stored_answer = stored.decode(handle.read())
        except NotFound:
            continue
        request, answer = stored_answer.request, stored_answer.response
        messages = request["messages" if endpoint == CHAT else "input"]
        item = {"input": messages, "model": answer.get("model"), "metadata": row["metadata"]}
        sample = _sample_from(answer, endpoint)
        facts = {name: answer.get(name) for name in ("model", "usage")}
        yield Item(number, text.number, item, {**sample, **facts} if sample else None, request)


def until_many_errors(rows: Iterator[Row | Bad]) -> Iterator[Row | Bad]:
    """Yield rows and errors up to the last of `MAX_ERRORS` errors."""
    errors = 0
    for row in rows:
        yield row
        errors += isinstance(row, Bad)
        if errors == MAX_ERRORS:
            return


def _item(number: int, text: Text) -> Item | Bad:
    if text.raw is None:
        return Bad("line_too_long", "This line is too long.", text.number)
    try:
        row = _decode(text.raw)
        too_deep = is_deep(text.raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Bad("invalid_json_line", "This line is not parseable as a JSON object.", text.number)
    if too_deep:
        return Bad("invalid_json_line", "This line is nested too deeply.", text.number)
    item, sample = row.get("item"), row.get("sample")
    if item is None:
        return Bad("missing_required_parameter", "Missing required parameter: 'item'.", text.number, "item")
    for name, value in (("item", item), ("sample", sample)):
        if not isinstance(value, dict | None):
            return Bad("invalid_type", f"Invalid type for '{name}': expected an object.", text.number, name)
    return Item(number, text.number, item, sample)


def is_deep(raw: bytes) -> bool:
    """Return whether a JSON text is nested too deeply. Raises RecursionError, MsgspecError."""
    if raw.count(b"[") + raw.count(b"{") <= _MAX_DEPTH:
        return False
    return _is_deep(msgspec.json.decode(raw), _MAX_DEPTH)


def _is_deep(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return not depth or any(_is_deep(child, depth - 1) for child in inner)


def _checked(read: Iterator[Item | Bad], schema: Mapping[str, Any], tenant: str) -> Iterator[Item | Bad]:
    """Yield the items that match their schema, and errors in place of the others."""
    raw = msgspec.json.encode(schema)
    checker = SchemaChecker()
    try:
        while rows := list(islice(read, _CHECKED_AT_ONCE)):
            texts = [msgspec.json.encode(row.item).decode() for row in rows if isinstance(row, Item)]
            faults = iter(_faults(checker, raw, texts, tenant))
            for row in rows:
                fault = next(faults) if isinstance(row, Item) else None
                message = f"The item does not match the schema: {fault}"
                yield row if fault is None else Bad("invalid_item", message, row.line, "item")
    finally:
        asyncio.run(checker.close())


def _faults(checker: SchemaChecker, schema: bytes, texts: Sequence[str], tenant: str) -> list[str | None]:
    try:
        return asyncio.run(checker.faults(schema, texts, tenant))
    except BadSchema as error:
        return [error.why] * len(texts)


class Records:
    """The output lines of a job that has ended, taken in the order of their requests."""

    def __init__(self, context: Context, job: Job) -> None:
        self._lines = self._read(context, job)
        self._next = next(self._lines, None)

    def take(self, number: int, index: int) -> dict[str, dict[str, Any]]:
        """Return the output lines about a sample of an item by their keys.

        Lines about earlier samples are left out: their items were deleted meanwhile.
        """
        taken = {}
        while self._next is not None:
            sample, key = _parts_of(self._next["custom_id"])
            if sample > (number, index):
                break
            if sample == (number, index):
                taken[key] = self._next
            self._next = next(self._lines, None)
        return taken

    @staticmethod
    def _read(context: Context, job: Job) -> Iterator[dict[str, Any]]:
        for _, segments in shards_of(context, job.id):
            records = records_of(context, segments)
            for line in sorted(records):
                yield _decode(output_line(context, records[line][1]))


def cases_of(context: Context, run: Job, *, checked: bool, judged: bool) -> Iterator[Case | Bad]:
    """Yield the cases of a run whose model has answered; with `judged` also what judges answered."""
    with context.db.read() as session:
        steps = steps_of(session, [run.id])[run.id]
    sampled, judges = None, list[tuple[int, Records]]()
    for step in steps:
        criterion = Sampling.model_validate(step.payload).criterion
        if criterion is None:
            sampled = Records(context, step)
        elif judged:
            judges.append((criterion, Records(context, step)))
    for case in unanswered_cases(context, run, checked=checked):
        if isinstance(case, Bad):
            yield case
            continue
        sample = case.item.number, case.index
        answer = sampled.take(*sample).get("") if sampled else None
        judgements = {criterion: dict(answers) for criterion, answers in case.judgements.items()}
        for criterion, records in judges:
            judgements.setdefault(criterion, {}).update(_answers(records.take(*sample)))
        yield replace(case, answer=answer, judgements=judgements)


def unanswered_cases(context: Context, run: Job, *, checked: bool) -> Iterator[Case | Bad]:
    """Yield the cases of a run before anything was asked about them, or the errors of its items."""
    payload = Evaluation.model_validate(run.payload)
    if payload.retried is not None:
        yield from _cases_again(context, payload.retried)
        return
    for item in items_of(context, run, checked=checked):
        if isinstance(item, Bad):
            yield item
            continue
        for index in range(payload.sampled.n if payload.sampled else 1):
            yield Case(item, index)


def _cases_again(context: Context, run_id: str) -> Iterator[Case | Bad]:
    """Yield the cases of an ended run for its retry."""
    number = index = -1
    try:
        for earlier in earlier_cases(context, run_id):
            index = index + 1 if earlier.number == number else 0
            number = earlier.number
            item = Item(number, number + 1, earlier.item, None)
            yield Case(item, index, judgements=earlier.judgements, earlier=earlier)
    except NotFound:
        yield Bad("run_gone", f"The items of run '{run_id}', which this run retries, are gone.")


def _answers(outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Answer]:
    return {key: _answer(output) for key, output in outputs.items()}


def _answer(output: Mapping[str, Any]) -> Answer:
    """Return the answer of an output line; one without a response is an error of the server."""
    response = output["response"]
    if response is None:
        return Answer(500, {"error": output["error"]})
    body = response["body"]
    return Answer(response["status_code"], body if isinstance(body, dict) else {})


def sample_of(case: Case, endpoint: str | None) -> dict[str, Any] | None:
    """Return the sample that graders see; None where the model gave none."""
    if case.earlier is not None and case.earlier.sample is not None:
        return case.earlier.sample
    if endpoint is None:
        return sample_from_given(case.item.sample or {})
    answer = _answer(case.answer) if case.answer else None
    if answer is None or not 200 <= answer.status < 300:
        return None
    return _sample_from(answer.body, endpoint)


def _sample_from(answer: Mapping[str, Any], endpoint: str) -> dict[str, Any] | None:
    """Return the sample of an answer; None for a response that failed, or for what is no answer."""
    if answer.get("status") == "failed":
        return None
    try:
        return sample_from_answer(endpoint, answer)
    except NO_ANSWER:
        return None


def sample_error(case: Case) -> dict[str, str]:
    """Return why there is no sample."""
    return error_of(_answer(case.answer) if case.answer else Answer(500, {}))


def error_of(answer: Answer) -> dict[str, str]:
    """Return the error that a model's server gave in place of an answer."""
    error = answer.body.get("error")
    fields = error if isinstance(error, dict) else {}
    message = fields.get("message") or f"The model's server answered {answer.status}."
    return {"code": str(fields.get("code") or "sample_error"), "message": str(message)}
