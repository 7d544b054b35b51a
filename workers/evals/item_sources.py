"""The items of a run: a class for each way in which they come, which reads the cases of the run.

    LineItems                       items on the lines of a file or of the request, with their samples if there are any
    StoredChats, StoredResponses    stored answers of the project, by their ids
    RetriedRun                      the cases of an ended run: what was graded stays graded
    ImportedRun                     output items of another deployment             `workers.evals.imported_run`

A case is a row of the run, which becomes complete step by step:

    source          number, item; and what came with the item: sample, shown, judgements; or results; or kept
    sampled model   sample, shown
    judges          judgements
"""

import asyncio
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Final

import msgspec

from jobs.batches import lines
from jobs.batches.lines import Bad, InputLine
from jobs.errors import NotFound
from jobs.evals import runs
from jobs.evals.graders.base import ModelAnswer
from jobs.evals.runs import Evaluation
from jobs.evals.samples import sample_from_answer, sample_from_given
from jobs.evals.tables import EvalRun
from jobs.inference import responses, stored
from jobs.ledger.tables import Job
from jobs.requests.endpoints import CHAT, RESPONSES
from workers.batches.finishing import output_line, records_of, shards_of
from workers.evals import shown
from workers.middleware.schema_checker import BadSchema, SchemaChecker
from workers.runtime.context import Context

_CHECKED_AT_ONCE: Final = 100
#: Deeper values could not be shown; bodies of requests have the same limit.
_MAX_DEPTH: Final = 100
_decode = msgspec.json.Decoder(dict).decode


class CaseRow(msgspec.Struct, omit_defaults=True):
    """A line of a run: what grading needs to know of a case, or the output item that is `kept`.

    `shown` is the sample as clients see it. An imported case has its `results`.
    """

    number: int
    item: dict[str, Any] = {}
    sample: dict[str, Any] | None = None
    shown: dict[str, Any] = {}
    judgements: dict[int, dict[str, tuple[int, Any]]] = {}
    results: list[dict[str, Any]] = []
    kept: msgspec.Raw = msgspec.Raw()

    def answers(self) -> dict[int, dict[str, ModelAnswer]]:
        """Return what judges answered, by criterion and key."""
        return {
            criterion: {key: ModelAnswer(*answer) for key, answer in answers.items()}
            for criterion, answers in self.judgements.items()
        }


decode_row = msgspec.json.Decoder(CaseRow).decode


@dataclass(frozen=True, slots=True)
class RunCase:
    """A case of a run: number `index` among the samples of its item, as far as the row is known.

    `line` is the number of the line that has the item. `to_judge` are the criteria whose judges are still to be asked.
    """

    row: CaseRow
    line: int
    index: int = 0
    to_judge: Container[int] = ()

    @property
    def needs_sample(self) -> bool:
        return self.row.sample is None and not self.row.kept


class ItemSource:
    """The items of one run. With `checked` those that do not match the schema of items are errors."""

    def __init__(self, context: Context, run: Job, payload: Evaluation, *, checked: bool) -> None:
        self.context, self.run, self.payload, self.checked = context, run, payload, checked

    def cases(self) -> Iterator[RunCase | Bad]:
        """Yield the cases as far as the source knows them, and the errors of items."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class _Item:
    """An item: its number from 0, and the number of its line.

    The `answer` that came with it was given to the `messages`, which are those of the `request`.
    """

    number: int
    line: int
    item: dict[str, Any]
    answer: Mapping[str, Any]
    messages: Sequence[Mapping[str, Any]] = ()
    request: Mapping[str, Any] = field(default_factory=dict)


class LineItems(ItemSource):
    """Items on lines: `{"item": …}`, with a `"sample"` where it is graded as it is."""

    def cases(self) -> Iterator[RunCase | Bad]:
        try:
            with self.context.storage.reader(self.payload.items) as handle:
                texts = lines.read(handle)
                items = (item for number, text in enumerate(texts) if (item := self.read(number, text)) is not None)
                for item in self._matching(items) if self.checked else items:
                    if isinstance(item, Bad):
                        yield item
                    else:
                        yield from self._cases_of(item)
        except NotFound:
            yield Bad("invalid_request", "The items of the run are gone.", None, "data_source")

    def read(self, number: int, text: InputLine) -> _Item | Bad | None:
        """Return the item of a line, or its error; None where it was deleted meanwhile."""
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
        return _Item(number, text.number, item, sample or {})

    def _cases_of(self, item: _Item) -> Iterator[RunCase]:
        """Yield the cases of an item: one for each sample that a model is asked for, or that of the item's answer."""
        criteria, sampled = range(len(self.payload.criteria)), self.payload.sampled
        if sampled is not None:
            for index in range(sampled.n):
                yield RunCase(CaseRow(item.number, item.item), item.line, index, criteria)
            return
        sample = sample_from_given(item.answer)
        row = CaseRow(item.number, item.item, sample, shown.of_item(sample, item.messages, item.request, item.answer))
        yield RunCase(row, item.line, to_judge=criteria)

    def _matching(self, items: Iterator[_Item | Bad]) -> Iterator[_Item | Bad]:
        """Yield the items that match their schema, and errors in place of the others."""
        schema, checker = msgspec.json.encode(self.payload.item_schema), SchemaChecker()
        try:
            while rows := list(islice(items, _CHECKED_AT_ONCE)):
                texts = [msgspec.json.encode(row.item).decode() for row in rows if isinstance(row, _Item)]
                faults = iter(_faults(checker, schema, texts, self.run.project_id))
                for row in rows:
                    fault = next(faults) if isinstance(row, _Item) else None
                    message = f"The item does not match the schema: {fault}"
                    yield row if fault is None else Bad("invalid_item", message, row.line, "item")
        finally:
            asyncio.run(checker.close())


class _StoredAnswers(LineItems):
    """Items that are stored answers: on each line is the id of one, and its metadata."""

    endpoint: ClassVar[str]
    messages_field: ClassVar[str]

    def path(self, answer_id: str) -> str:
        """Return the path of a stored answer."""
        raise NotImplementedError

    def read(self, number: int, text: InputLine) -> _Item | None:
        row = _decode(text.raw or b"")
        try:
            with self.context.storage.reader(self.path(row["id"])) as handle:
                stored_answer = stored.decode(handle.read())
        except NotFound:
            return None
        request, answer = stored_answer.request, stored_answer.response
        messages = request[self.messages_field]
        item = {"input": messages, "model": answer.get("model"), "metadata": row["metadata"]}
        sample = sample_from_answer(self.endpoint, answer)
        fields = {name: answer.get(name) for name in ("model", "usage")}
        return _Item(number, text.number, item, {**sample, **fields} if sample else {}, messages, request)


class StoredChatItems(_StoredAnswers):
    endpoint, messages_field = CHAT, "messages"

    def path(self, answer_id: str) -> str:
        return stored.completion_path(answer_id)


class StoredResponseItems(_StoredAnswers):
    endpoint, messages_field = RESPONSES, "input"

    def path(self, answer_id: str) -> str:
        return responses.path(answer_id)


class _Result(msgspec.Struct):
    error: Any = None


class _Grades(msgspec.Struct):
    """The parts of an output item that tell what errored."""

    status: str
    results: list[_Result]


_decode_grades = msgspec.json.Decoder(_Grades).decode


class RetriedRun(ItemSource):
    """The cases of an ended run: what errored or is missing is done again.

        rows      {"number", "item", "sample", …}   the run's file of lines, one for each case
        grades    an output item                    the record of the line in a segment; none where it was not graded

    A case whose grade stays has a row of its own kind in the retry, which may be retried too: {"number", "kept"}.
    """

    def cases(self) -> Iterator[RunCase | Bad]:
        number = index = -1
        try:
            for row, graded in self._rows_with_results(self.payload.retried or ""):
                index = index + 1 if row.number == number else 0
                number = row.number
                yield self._case(row, index, graded)
        except NotFound:
            message = f"The items of run '{self.payload.retried}', which this run retries, are gone."
            yield Bad("run_gone", message)

    def _rows_with_results(self, run_id: str) -> Iterator[tuple[CaseRow, bytes]]:
        """Yield the rows of the ended run, each with its output item if it has one. Raises NotFound."""
        with self.context.db.read() as session:
            job = session.get(Job, run_id)
            if job is None or session.get(EvalRun, run_id) is None:
                raise NotFound
        with self.context.storage.reader(job.input_path or "") as handle:
            for shard, segments in shards_of(self.context, run_id):
                records = records_of(self.context, segments)
                for line, raw in enumerate(lines.split(handle.read(shard.length))):
                    yield decode_row(raw), output_line(self.context, records[line][1]) if line in records else b""

    def _case(self, row: CaseRow, index: int, graded: bytes) -> RunCase:
        line = row.number + 1
        if row.kept:
            return RunCase(row, line, index)
        grades = _decode_grades(graded) if graded else _Grades(runs.ERRORED, [])
        if grades.status != runs.ERRORED:
            return RunCase(CaseRow(row.number, kept=msgspec.Raw(graded)), line, index)
        errored = [criterion for criterion, result in enumerate(grades.results) if result.error is not None]
        return RunCase(row, line, index, range(len(self.payload.criteria)) if row.sample is None else errored)


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


def _faults(checker: SchemaChecker, schema: bytes, texts: Sequence[str], tenant: str) -> list[str | None]:
    try:
        return asyncio.run(checker.faults(schema, texts, tenant))
    except BadSchema as error:
        return [error.why] * len(texts)
