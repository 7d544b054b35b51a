"""Join the results of a batch with their requests: input, output and error file, merged line by line.

All three files are in the order of the input, so memory holds one line of each. An input line without a result is
skipped: a retry runs some of the lines only. A line that `dedupe` answered with the result of another line
(`duplicate_of`) has no tokens in its row, so that the sum over the rows is the usage of the batch. A cursor of three
offsets names the row that comes next, so a page deep in a batch costs as much as the first.
"""

import base64
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

from jobs.batches import lines
from jobs.errors import InvalidRequest

Row = dict[str, Any]

#: Bytes of lines that a page holds, and that are read for a page, at most.
PAGE_BYTES: Final = 8 << 20
SCANNED_BYTES: Final = 64 << 20
_CURSOR: Final = re.compile(r"(\d{1,18})-(\d{1,18})-(\d{1,18})", re.ASCII)


class Unjoinable(InvalidRequest):
    """A batch whose results do not fit its input."""

    code = "results_unjoinable"


#: The columns, in order; beside them `row`, where the line was made of the row of a table.
#: `answer` is text; of an embedding its vector, of a re-ranking its indices and scores as JSON.
COLUMNS = (
    "custom_id", "prompt", "answer", "finish_reason", "status_code", "error_code", "error_message",
    "input_tokens", "output_tokens", "duplicate_of", "request", "response",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cursor:
    """The offsets in the input, output and error file at which the next row begins."""

    inputs: int = 0
    outputs: int = 0
    errors: int = 0

    def __str__(self) -> str:
        return f"{self.inputs}-{self.outputs}-{self.errors}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the cursor that `str` has written as `text`; None for any other text."""
        match = _CURSOR.fullmatch(text)
        return cls(*map(int, match.groups())) if match else None


START: Final = Cursor()


@dataclass(frozen=True, slots=True)
class Filter:
    """The rows that are selected: those that failed or did not, with this error code, with this `custom_id`.

    `matches` is a further condition on a row.
    """

    failed: bool | None = None
    code: str | None = None
    custom_id: str | None = None
    matches: Callable[[Row], bool] = lambda _: True

    def takes(self, row: Row) -> bool:
        """Return whether a row is selected. Its `custom_id` was compared before the row was parsed."""
        code = row["error_code"]
        return self.failed in (None, code is not None) and self.code in (None, code) and self.matches(row)


ALL: Final = Filter()


class Join:
    """The three files of a batch from a cursor on, merged: pairs of a request's line and the line of its result."""

    def __init__(
        self, inputs: Iterable[bytes], outputs: Iterable[bytes], errors: Iterable[bytes], start: Cursor = START
    ) -> None:
        self._inputs = _Lines(inputs, start.inputs)
        self._heads = _Head(outputs, start.outputs), _Head(errors, start.errors)

    @property
    def cursor(self) -> Cursor:
        """Return where the pair after the last one begins."""
        return Cursor(self._inputs.end, *(head.offset for head in self._heads))

    @property
    def has_more(self) -> bool:
        """Return whether there are results that were not yielded."""
        return any(head.custom_id is not None for head in self._heads)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the line of each request that has a result, with the line of that result.

        Raises:
            Unjoinable: a result has no input line.
        """
        for line in self._inputs:
            request = line.removeprefix(lines.BOM).strip()
            custom_id = lines.id_of(request)
            for head in self._heads if custom_id is not None else ():
                if head.custom_id == custom_id:
                    answer = head.line
                    head.step()
                    yield request, answer
                    break
            if not self.has_more:
                return
        for head in self._heads:
            if head.custom_id is not None:
                raise Unjoinable(f"The result of '{head.custom_id}' has no line in the input file.")


def join_lines(
    inputs: Iterable[bytes], outputs: Iterable[bytes], errors: Iterable[bytes]
) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pairs of a `Join` from the beginning."""
    return iter(Join(inputs, outputs, errors))


def join_rows(
    inputs: Iterable[bytes], outputs: Iterable[bytes], errors: Iterable[bytes], overrides: Row | None = None
) -> Iterator[Row]:
    """Yield one row for each result, from the beginning."""
    return rows_of(Join(inputs, outputs, errors), overrides)


def rows_of(join: Join, overrides: Row | None = None, chosen: Filter = ALL) -> Iterator[Row]:
    """Yield the chosen rows, with requests as they were run: `overrides` of a retry replace fields of the body.

    Raises:
        Unjoinable: a result has no input line, or a line is nested too deeply.
    """
    for line, answer in join:
        if row := _select_row(line, answer, overrides, chosen):
            yield row


def page_of(join: Join, overrides: Row | None, chosen: Filter, limit: int) -> list[tuple[Cursor, Row]]:
    """Return at most `limit` chosen rows, each with the cursor behind it.

    The page ends early when it has many bytes, and when many were read without a chosen row. The cursor of the join
    says where the next page begins.
    """
    page: list[tuple[Cursor, Row]] = []
    kept = read = 0
    for line, answer in join:
        read += len(line) + len(answer)
        if row := _select_row(line, answer, overrides, chosen):
            page.append((join.cursor, row))
            kept += len(line) + len(answer)
        if len(page) == limit or kept > PAGE_BYTES or read > SCANNED_BYTES:
            break
    return page


def _select_row(line: bytes, answer: bytes, overrides: Row | None, chosen: Filter) -> Row | None:
    if chosen.custom_id not in (None, lines.id_of(line)):
        return None
    try:
        request, result = _load(line), _load(answer)
    except RecursionError as error:
        raise Unjoinable(f"The line of '{lines.id_of(line)}' is nested too deeply.") from error
    row = _row({**request, "body": {**request["body"], **(overrides or {})}}, result)
    return row if chosen.takes(row) else None


class _Lines:
    """The lines of a file from an offset on; `end` is the offset behind the last one that was read."""

    def __init__(self, source: Iterable[bytes], offset: int) -> None:
        self._source = iter(source)
        self.end = offset

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = next(self._source)
        self.end += len(line)
        return line


class _Head:
    """The next line of an output or error file that is not joined yet. At the end of the file `custom_id` is None."""

    def __init__(self, results: Iterable[bytes], offset: int) -> None:
        self._results = _Lines(results, offset)
        self.line = b""
        self.custom_id: str | None = None
        self.step()

    def step(self) -> None:
        """Go to the next line. Raises: Unjoinable, if it is no output line."""
        self.offset = self._results.end
        self.line = next(self._results, b"")
        self.custom_id = lines.id_of(self.line) if self.line else None
        if self.line and self.custom_id is None:
            raise Unjoinable(f"A result cannot be read: {self.line[:100]!r}")


def _parse_integer(digits: str) -> int | str:
    """Return `digits` as an integer, or unchanged where Python refuses to convert so many."""
    try:
        return int(digits)
    except ValueError:
        return digits


_load = partial(json.loads, parse_int=_parse_integer)


def _row(request: Row, result: Row) -> Row:
    """Return the columns of one result. `request` is the line of the input file, `result` its output or error line."""
    response = result["response"] or {}
    raw_body = response.get("body")
    body = raw_body if isinstance(raw_body, dict) else {}
    original = result.get("duplicate_of")
    usage = body["usage"] if original is None and isinstance(body.get("usage"), dict) else {}
    code, message = error_of(result)
    given = request.get("row")
    return {
        "custom_id": request["custom_id"],
        "prompt": _prompt(request["url"], request["body"]),
        "answer": None if code else answer_of(request["url"], body),
        "finish_reason": _finish_reason(body),
        "status_code": response.get("status_code"),
        "error_code": code,
        "error_message": message,
        "input_tokens": _tokens(usage.get("prompt_tokens", usage.get("input_tokens"))),
        "output_tokens": _tokens(usage.get("completion_tokens", usage.get("output_tokens"))),
        "duplicate_of": original,
        "request": request["body"],
        "response": raw_body or None,
    } | ({"row": given} if isinstance(given, dict) else {})


def _tokens(count: Any) -> int | None:
    return count if isinstance(count, int) else None


def error_of(result: Row) -> tuple[str | None, str | None]:
    """Return code and message of an output line that failed; None twice for a line that was answered."""
    if result.get("error"):
        return result["error"].get("code"), result["error"].get("message")
    response = result["response"]
    if response["status_code"] < 400:
        return None, None
    body = response["body"]
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    code = error.get("code")
    return code if isinstance(code, str) and code else f"http_{response['status_code']}", _plain(error.get("message"))


_ASKED = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/rerank": "query"}


def _prompt(url: str, body: Row) -> str | None:
    """Return the prompt of a request as text: the last message of a conversation, or the stored prompt it names."""
    content = body.get(_ASKED.get(url, "input"), body.get("prompt"))
    if isinstance(content, list) and content and isinstance(content[-1], dict):
        content = content[-1].get("content")
    if isinstance(content, list) and content and isinstance(content[0], dict):
        content = "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return _plain(content)


def _plain(value: Any) -> str | None:
    """Return text unchanged, and any other value as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def answer_of(url: str, body: Row) -> Any:
    """Return the answer, or None where the response has an unknown shape."""
    try:
        return _answer(url, body)
    except (AttributeError, LookupError, TypeError, ValueError, struct.error):
        return None


def _answer(url: str, body: Row) -> Any:
    """Return the text of an answer, the vector of an embedding, or the indices and scores of a ranking."""
    if url == "/v1/embeddings":
        return _vector(body["data"][0]["embedding"]) if len(body.get("data", ())) == 1 else None
    if url == "/v1/rerank":
        return json.dumps([[entry["index"], entry["relevance_score"]] for entry in body["results"]])
    if "choices" in body:
        first = body["choices"][0] if body["choices"] else {}
        return _plain(first.get("text") if "text" in first else (first.get("message") or {}).get("content"))
    parts = [part for item in body.get("output", ()) for part in item.get("content") or ()]
    return "".join(part["text"] for part in parts if part.get("type") == "output_text")


def _vector(embedding: Any) -> list[float]:
    """Return the floats of a vector. Base64 holds 32-bit floats, little-endian."""
    if not isinstance(embedding, str):
        return list(embedding)
    data = base64.b64decode(embedding)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def _finish_reason(body: Row) -> str | None:
    choices, details = body.get("choices"), body.get("incomplete_details")
    if choices:
        first = choices[0] if isinstance(choices, list) else None
        reason = first.get("finish_reason") if isinstance(first, dict) else None
    else:
        reason = (details.get("reason") if isinstance(details, dict) else None) or body.get("status")
    return reason if isinstance(reason, str) else None
