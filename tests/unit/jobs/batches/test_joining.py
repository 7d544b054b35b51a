"""Pages of joined rows: cursors, filters, and limits of what is read and held. Tables in bounded pieces."""

import io
import json
from typing import Any

import pytest
from pyarrow import parquet

from jobs.batches import exports, joining
from jobs.batches.joining import COLUMNS, START, Cursor, Filter, Join, Row

BOM = b"\xef\xbb\xbf"


def request(custom_id: str, **body: Any) -> bytes:
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", **body}}
    return json.dumps(line).encode() + b"\n"


def answer(custom_id: str, text: str = "yes") -> bytes:
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return json.dumps({"id": "x", "custom_id": custom_id, "response": response, "error": None}).encode() + b"\n"


def failure(custom_id: str, code: str) -> bytes:
    error = {"code": code, "message": "No."}
    return json.dumps({"id": "x", "custom_id": custom_id, "response": None, "error": error}).encode() + b"\n"


#: Of ten requests those with an even number succeeded, 1, 5 and 9 failed, and 3 and 7 were not run.
INPUTS = BOM + b"\r\n" + b"".join(request(f"c{n}") for n in range(10))
OUTPUTS = b"".join(answer(f"c{n}") for n in range(0, 10, 2))
ERRORS = failure("c1", "odd") + failure("c5", "other") + failure("c9", "odd")
ALL_IDS = ["c0", "c1", "c2", "c4", "c5", "c6", "c8", "c9"]


def join(start: Cursor = START) -> Join:
    handles = [io.BytesIO(text) for text in (INPUTS, OUTPUTS, ERRORS)]
    for handle, offset in zip(handles, (start.inputs, start.outputs, start.errors), strict=True):
        handle.seek(offset)
    return Join(*handles, start)


def pages(chosen: Filter = joining.ALL, limit: int = 3) -> list[list[str]]:
    """Return the `custom_id`s of all pages, each read from the cursor of the one before."""
    cursor: Cursor | None = START
    found = []
    while cursor is not None:
        part = join(cursor)
        found.append([row["custom_id"] for _, row in joining.page_of(part, None, chosen, limit)])
        cursor = Cursor.parse(str(part.cursor)) if part.has_more else None
    return found


def test_each_page_starts_after_previous_page() -> None:
    assert pages() == [["c0", "c1", "c2"], ["c4", "c5", "c6"], ["c8", "c9"]]


def test_the_last_page_says_that_there_are_no_more_even_if_it_is_full() -> None:
    assert pages(limit=4) == [ALL_IDS[:4], ALL_IDS[4:]]


def test_a_row_names_the_cursor_behind_it() -> None:
    [*_, (cursor, _)] = joining.page_of(join(), None, joining.ALL, 2)

    assert [row["custom_id"] for row in joining.rows_of(join(cursor))] == ALL_IDS[2:]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (Filter(failed=True), ["c1", "c5", "c9"]),
        (Filter(failed=False), ["c0", "c2", "c4", "c6", "c8"]),
        (Filter(code="odd"), ["c1", "c9"]),
        (Filter(custom_id="c5"), ["c5"]),
        (Filter(custom_id="c3"), []),
        (Filter(failed=False, code="odd"), []),
    ],
)
def test_a_filter_selects_rows_in_pages_and_in_streams(chosen: Filter, expected: list[str]) -> None:
    assert [row["custom_id"] for row in joining.rows_of(join(), None, chosen)] == expected
    assert [name for page in pages(chosen) for name in page] == expected


def test_a_page_ends_after_many_bytes_without_a_selected_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "SCANNED_BYTES", 300)

    assert pages(Filter(custom_id="c9"))[0] == []
    assert [name for page in pages(Filter(custom_id="c9")) for name in page] == ["c9"]


def test_page_size_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "PAGE_BYTES", 1)

    assert pages() == [[name] for name in ALL_IDS]


@pytest.mark.parametrize(
    "text", ["", "1", "1-2", "a-b-c", "1-2-3-4", "-1-2-3", "1-2-" + "9" * 19, "\N{ARABIC-INDIC DIGIT ONE}-2-3"]
)
def test_other_texts_are_no_cursors(text: str) -> None:
    assert Cursor.parse(text) is None


def rows(count: int, answer: str) -> list[Row]:
    row = dict.fromkeys(COLUMNS)
    return [{**row, "custom_id": str(n), "answer": answer, "request": {}, "response": None} for n in range(count)]


def test_parquet_comes_in_pieces_of_bounded_size() -> None:
    pieces = list(exports.parquet_pieces(rows(10, "x" * (3 << 20))))

    file = parquet.ParquetFile(io.BytesIO(b"".join(pieces)))
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert groups == [3, 3, 3, 1]
    assert file.read()["custom_id"].to_pylist() == [str(n) for n in range(10)]


def test_a_lone_surrogate_is_replaced_in_parquet() -> None:
    table = parquet.read_table(io.BytesIO(b"".join(exports.parquet_pieces(rows(1, "a\ud800b")))))

    assert table["answer"].to_pylist() == ["a?b"]
