"""The results of a job: its finished lines as they come, or joined with their requests, as pages or as a table.

format=jsonl                 output and error lines as they are, also while the job runs
format=jsonl, join=true  ┐
format=csv | parquet     ├── rows of an ended batch: a request beside its result, filtered, in the input's order
format=json              ┘   the last as pages
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Final, Literal, NamedTuple

from fastapi import Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.files.queries import visible
from api.http.bodies import resource
from api.http.fields import bracket_entries
from api.jobs.routes import get_job
from api.jobs.streams import follow_results, iterate_in_thread
from api.shares import open_stream, run_in_threadpool
from jobs.batches import batches, exports, joining
from jobs.batches.joining import START, Cursor, Filter, Join, Row
from jobs.batches.tabulation import has_cells, tabulate
from jobs.errors import Conflict, InvalidRequest
from jobs.files.tables import File
from jobs.ledger import kinds
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Job
from jobs.platform.storage import Storage
from jobs.requests.endpoints import EMBEDDINGS

router = resource("Jobs", area="jobs")

_PIECE: Final = 1 << 18  # bytes that are sent at once
_TYPES: Final = {
    "jsonl": "application/jsonl",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
}


class ResultRow(BaseModel):
    """A request beside its result. `id` names its position among the results of the job, for `after`.

    `answer` is text; of an embedding its vector, of a re-ranking its indices and scores as JSON. A line that was
    answered with the result of another one names that in `duplicate_of`, and has no tokens. `row` is that of the table
    that the line was made of.
    """

    id: str
    custom_id: str
    prompt: str | None
    answer: str | list[float] | None
    finish_reason: str | None
    status_code: int | None
    error_code: str | None
    error_message: str | None
    input_tokens: int | None
    output_tokens: int | None
    duplicate_of: str | None
    request: dict[str, Any]
    response: Any
    row: dict[str, Any] | None = None


class ResultPage(BaseModel):
    """Rows in the order of the input.

    A page has fewer rows than `limit`, even none, where the rows are large or few are selected: go on after `last_id`
    while `has_more` is true.
    """

    object: Literal["list"] = "list"
    data: list[ResultRow]
    last_id: str
    has_more: bool


class ResultQuery(BaseModel):
    """The selection of rows and their format."""

    format: Literal["jsonl", "json", "csv", "parquet"] = Field(
        "jsonl", description="`json`: a page of joined rows. `csv`, `parquet`: all joined rows as a table."
    )
    table: bool = Field(
        False,
        description="Of all joined rows: the columns of the table that the lines were made of, and of their answers.",
    )
    join: bool = Field(False, description="Of `jsonl`: joined rows instead of output and error lines.")
    state: Literal["succeeded", "failed"] | None = Field(None, description="Of joined rows: only these.")
    code: str | None = Field(None, max_length=128, description="Of joined rows: only those with this error code.")
    custom_id: str | None = Field(None, max_length=512, description="Of joined rows: only that of this request.")
    after: str | None = Field(None, max_length=64, description="Of a page: the `last_id` of the page before.")
    limit: int = Field(20, ge=1, le=100, description="Rows of a page.")
    follow: bool = Field(True, description="Of output lines: go on until the job ends.")

    @property
    def joined(self) -> bool:
        return self.join or self.format != "jsonl"

    def filter(self, columns: dict[str, str]) -> Filter:
        """Return the selection of rows, also by the texts of `columns` of the table.

        Raises: InvalidRequest, for a parameter that has no meaning for the format.
        """
        self._check()
        if columns and not self.joined:
            message = "'column' selects joined rows: set 'join=true' or another 'format'."
            raise InvalidRequest(message, param="column", code="invalid_value")
        failed = None if self.state is None else self.state == "failed"
        chosen = Filter(failed, self.code, self.custom_id)
        return replace(chosen, matches=partial(has_cells, texts=columns)) if columns else chosen

    def _check(self) -> None:
        if self.after is not None and self.format != "json":
            raise InvalidRequest("Only pages ('format=json') go on after a row.", param="after", code="invalid_value")
        if self.table and (not self.joined or self.format == "json"):
            message = "'table' shapes all joined rows: set 'join=true', 'format=csv' or 'format=parquet'."
            raise InvalidRequest(message, param="table", code="invalid_value")
        for name in ("state", "code", "custom_id"):
            if getattr(self, name) is not None and not self.joined:
                message = f"'{name}' selects joined rows: set 'join=true' or another 'format'."
                raise InvalidRequest(message, param=name, code="invalid_value")


_DOC: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ResultPage,
        "description": "A page with `format=json`, otherwise lines or a table",
        "content": {
            "application/jsonl": {"schema": {"type": "string"}},
            "text/csv": {"schema": {"type": "string"}},
            "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.get("/jobs/{job_id}/results", response_class=Response, responses=_DOC)
async def job_results(call: Call, request: Request, job_id: str, query: Annotated[ResultQuery, Query()]) -> Response:
    """Return the results of a job: its finished lines, in no particular order while it runs, or joined rows.

    Joined rows put each request beside its result, in the order of the input. A batch has them when it has ended.
    `column[name]=text` selects those with this text in a column of the table, up to 16 times.
    """
    chosen = query.filter(dict(bracket_entries(request.query_params.multi_items(), "column")))
    if not query.joined:
        await run_in_threadpool(_check_lines, call, job_id)
        open_stream()
        return StreamingResponse(follow_results(call, job_id, follow=query.follow), media_type=_TYPES["jsonl"])
    source = await run_in_threadpool(_source, call, job_id)
    if query.format == "json":
        return await run_in_threadpool(_page, source, query, chosen)
    open_stream()
    disposition = f'attachment; filename="{source.job_id}.{query.format}"'
    headers = {"Content-Disposition": disposition, "X-Content-Type-Options": "nosniff"}
    pieces = _pieces(source, query, chosen)
    first = await run_in_threadpool(next, pieces, b"")  # before the response begins: missing files are an error
    return StreamingResponse(
        iterate_in_thread(_prepend(first, pieces)), headers=headers, media_type=_TYPES[query.format]
    )


class _Stored(NamedTuple):
    """A file in the storage; the path is empty where the batch has none."""

    path: str = ""
    bytes: int = 0


class _Source(NamedTuple):
    """The input, output and error file of an ended batch."""

    storage: Storage
    job_id: str
    endpoint: str
    overrides: Row
    files: tuple[_Stored, _Stored, _Stored]

    @contextmanager
    def join(self, start: Cursor = START) -> Iterator[Join]:
        """Open the files at the offsets of a cursor."""
        offsets = (start.inputs, start.outputs, start.errors)
        with ExitStack() as stack:
            inputs, outputs, errors = (
                stack.enter_context(self.storage.reader(file.path, offset)) if file.path else []
                for file, offset in zip(self.files, offsets, strict=True)
            )
            yield Join(inputs, outputs, errors, start)

    def check(self, cursor: Cursor) -> None:
        """Raise InvalidRequest unless each offset is 0 or follows the end of a line."""
        offsets = (cursor.inputs, cursor.outputs, cursor.errors)
        for file, offset in zip(self.files, offsets, strict=True):
            if offset > file.bytes or (offset and self.storage.piece(file.path, offset - 1, 1) != b"\n"):
                raise _no_row(str(cursor))


def _no_row(after: str) -> InvalidRequest:
    return InvalidRequest(f"No row with id '{after}'.", param="after", code="invalid_cursor")


def _check_lines(call: CallContext, job_id: str) -> Job:
    with call.db.read() as session:
        return _job_with_lines(session, call, job_id)


def _job_with_lines(session: Session, call: CallContext, job_id: str) -> Job:
    job = get_job(session, call, job_id)
    if not kinds.of(job.kind).has_lines:
        message = f"A job of kind '{job.kind}' has no lines that could be read."
        raise InvalidRequest(message, param="job_id", code="no_results")
    return job


def _source(call: CallContext, job_id: str) -> _Source:
    with call.db.read() as session:
        job = _job_with_lines(session, call, job_id)
        if job.state not in TERMINAL:
            raise Conflict(
                f"Job '{job.id}' is {job.state}: its results are joined when it has ended.", code="invalid_state"
            )
        ids = (job.input_file_id, job.output_file_id, job.error_file_id)
        files = {file.id: file for file in session.scalars(visible(call).where(File.id.in_(filter(None, ids))))}
    if job.input_file_id not in files:
        message = f"The input file '{job.input_file_id}' of job '{job.id}' is gone."
        raise InvalidRequest(message, param="input_file_id", code="input_file_gone")
    if missing := next((file_id for file_id in ids if file_id and file_id not in files), None):
        message = f"The file '{missing}' with results of job '{job.id}' is gone."
        raise InvalidRequest(message, param="job_id", code=batches.RESULTS_EXPIRED)
    stored = (_Stored(files[file_id].path, files[file_id].bytes) if file_id else _Stored() for file_id in ids)
    inputs, outputs, errors = stored
    overrides = job.payload.get("overrides") or {}
    return _Source(call.storage, job.id, job.endpoint, overrides, (inputs, outputs, errors))


def _page(source: _Source, query: ResultQuery, chosen: Filter) -> Response:
    start = Cursor.parse(query.after) if query.after else START
    if start is None:
        raise _no_row(str(query.after))
    source.check(start)
    with source.join(start) as join:
        rows = joining.page_of(join, source.overrides, chosen, query.limit)
        page = {
            "object": "list",
            "data": [{"id": str(cursor), **row} for cursor, row in rows],
            "last_id": str(join.cursor),
            "has_more": join.has_more,
        }
    return Response(json.dumps(page), media_type="application/json")  # ASCII: rows may hold lone surrogates


def _pieces(source: _Source, query: ResultQuery, chosen: Filter) -> Iterator[bytes]:
    with source.join() as join:
        rows: Iterator[Row] = joining.rows_of(join, source.overrides, chosen)
        kinds = exports.VECTOR_KINDS if source.endpoint == EMBEDDINGS else exports.KINDS
        if query.table:
            kinds, rows = tabulate(rows)
        if query.format == "parquet":
            yield from exports.parquet_pieces(rows, kinds)
        elif query.format == "csv":
            yield from _join_texts(text.encode(errors="replace") for text in exports.csv_lines(rows, kinds))
        else:
            yield from _join_texts(json.dumps(row).encode() + b"\n" for row in rows)


def _prepend(first: bytes, others: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from others


def _join_texts(texts: Iterable[bytes]) -> Iterator[bytes]:
    """Join short texts into pieces, each of which takes a thread."""
    piece = bytearray()
    for text in texts:
        piece += text
        if len(piece) > _PIECE:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)
