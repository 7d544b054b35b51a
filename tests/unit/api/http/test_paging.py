"""Pages of a list, forwards and backwards, also where many rows are of the same moment."""

from typing import Any

import pytest
from sqlalchemy import select

from api.http.paging import find, slice_of
from jobs.db.engine import Database
from jobs.errors import InvalidRequest
from jobs.retrieval.tables import VectorStore
from tests.unit.jobs.retrieval.test_attachments import make_store

ROWS = 11


@pytest.fixture
def rows(db: Database) -> list[str]:
    """Newest first; three at a time are of the same moment."""
    for n in range(ROWS):
        make_store(db, f"vs_{n:02d}", created_at=float(n // 3))
    make_store(db, "vs_other", project_id="proj_2")
    return [f"vs_{n:02d}" for n in reversed(range(ROWS))]


def ask(db: Database, **query: Any) -> tuple[list[str], bool]:
    statement = select(VectorStore).where(VectorStore.project_id == "proj_1")
    with db.read() as session:
        found, more = find(session, statement, VectorStore, **{"after": None, "limit": 4, **query})
    return [row.id for row in found], more


def walk(db: Database, cursor: str, end: int, **query: Any) -> list[list[str]]:
    """Page after page, each from the end of the one before."""
    pages, more = [], True
    while more:
        at = {cursor: pages[-1][end]} if pages else {}
        page, more = ask(db, **query, **at)
        pages.append(page)
    return pages


@pytest.mark.parametrize("limit", [1, 3, 4, 11, 50])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_forwards_every_row_comes_once(db: Database, rows: list[str], order: str, limit: int) -> None:
    pages = walk(db, "after", -1, order=order, limit=limit)

    assert [row for page in pages for row in page] == (rows if order == "desc" else rows[::-1])
    assert all(len(page) == limit for page in pages[:-1])


@pytest.mark.parametrize("limit", [1, 3, 4, 50])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_backwards_every_row_comes_once_in_the_same_order(
    db: Database, rows: list[str], order: str, limit: int
) -> None:
    wanted = rows if order == "desc" else rows[::-1]
    pages, before, more = [], wanted[-1], True
    while more:
        page, more = ask(db, order=order, limit=limit, before=before)
        pages.insert(0, page)
        before = page[0]

    assert [row for page in pages for row in page] == wanted[:-1]


def test_before_the_first_is_nothing(db: Database, rows: list[str]) -> None:
    assert ask(db, before=rows[0]) == ([], False)


@pytest.mark.parametrize(("limit", "wanted", "more"), [(2, slice(3, 5), True), (9, slice(3, 7), False)])
def test_between_two_rows(db: Database, rows: list[str], limit: int, wanted: slice, more: bool) -> None:
    assert ask(db, after=rows[2], before=rows[7], limit=limit) == (rows[wanted], more)


@pytest.mark.parametrize("param", ["after", "before"])
@pytest.mark.parametrize("name", ["vs_unknown", "vs_other", ""])
def test_a_cursor_that_names_nothing_of_this_project_is_an_error(
    db: Database, rows: list[str], param: str, name: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ask(db, **{param: name})

    assert (refused.value.param, refused.value.code, len(rows)) == (param, "invalid_cursor", ROWS)


def test_of_a_list_in_memory_only_the_page_is_made() -> None:
    shown = list[str]()

    def show(item: Any) -> str:
        shown.append(item["id"])
        return str(item["id"])

    page = slice_of([{"id": f"{n}"} for n in range(100)], show, after="97", limit=3, order="desc")

    assert page.data == shown == ["96", "95", "94"]
    assert (page.first_id, page.last_id, page.has_more) == ("96", "94", True)
