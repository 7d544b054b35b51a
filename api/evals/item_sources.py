"""The items of a run: those in the body of its request, those of a file, or stored answers of the project."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from sqlalchemy import func, select

from api.deps import CallContext
from api.evals.schemas import FileContent, FileReference, Row, StoredCompletions, StoredResponses
from api.http.paging import match_metadata
from jobs.errors import InvalidRequest
from jobs.inference.answer_queries import select_answers
from jobs.inference.tables import StoredCompletion, StoredResponse
from jobs.registry.tables import Feedback


@dataclass(frozen=True, slots=True)
class RunItems:
    """The items of a new run: `lines` that are stored with it, or the file that has them.

    With `stored` the lines are the ids of stored answers of that type.
    """

    lines: bytes = b""
    file_id: str | None = None
    stored: Literal["stored_completions", "responses"] | None = None


def items_of(
    call: CallContext,
    config: Mapping[str, Any],
    source: FileContent | FileReference | StoredCompletions | StoredResponses,
) -> RunItems:
    """Return the items that a request names. Raises InvalidRequest."""
    if isinstance(source, FileReference):
        return RunItems(file_id=source.id)
    if isinstance(source, FileContent):
        return RunItems(_lines([_line(row) for row in source.content]))
    metadata = {**(config.get("metadata") or {}), **(source.metadata or {})}
    return RunItems(lines_of_answers(call, source, metadata, "data_source.source"), stored=source.type)


def lines_of_answers(
    call: CallContext, source: StoredCompletions | StoredResponses, metadata: Mapping[str, str], param: str
) -> bytes:
    """Return a line for each stored answer that matches: its id and metadata. Raises InvalidRequest for none."""
    answers = _matching_answers(call, source, metadata)
    if not answers:
        raise InvalidRequest("No stored answer of the project matches the source.", param=param, code="no_items")
    return _lines([{"id": answer_id, "metadata": metadata or {}} for answer_id, metadata in answers])


def _line(row: Row) -> dict[str, Any]:
    return {"item": row.item} if row.sample is None else {"item": row.item, "sample": row.sample}


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def _matching_answers(
    call: CallContext, source: StoredCompletions | StoredResponses, metadata: Mapping[str, str]
) -> Sequence[tuple[str, Any]]:
    """Return the ids and the metadata of the stored answers that match, the newest first."""
    table: Any = StoredCompletion if isinstance(source, StoredCompletions) else StoredResponse
    until = None if source.created_before is None else source.created_before + 1
    statement = select_answers(table, call.project_id, model=source.model, since=source.created_after, until=until)
    pairs = [(f"metadata[{name}]", value) for name, value in metadata.items()]
    statement = match_metadata(statement, table.metadata_, pairs, sqlite=call.db.sqlite)
    own = Feedback.project_id == call.project_id, Feedback.target_id == table.id
    score = select(func.avg(Feedback.score)).where(*own).scalar_subquery()
    if source.min_score is not None:
        statement = statement.where(score >= source.min_score)
    if source.max_score is not None:
        statement = statement.where(score <= source.max_score)
    with call.db.read() as session:
        rows = session.execute(statement.limit(source.limit))
        return [(answer_id, stored_metadata) for answer_id, stored_metadata in rows]
