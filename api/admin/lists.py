"""Pages of the lists of the admin API, which the SDK follows in three ways: by the last item, `last_id`, or `next`."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request

from api.http.paging import Page, page
from jobs.errors import InvalidRequest

Row = TypeVar("Row")
Shown = TypeVar("Shown")

MAX_VALUES = 100
Limit1000 = Annotated[int, Query(ge=1, le=1000, description="Objects on a page.")]


class AdminPage(Page[Shown]):
    """One page of a list. `next` is the cursor of the next page; null on the last one."""

    next: str | None


def admin_page(rows: Sequence[Row], more: bool, show: Callable[[Row], Shown]) -> AdminPage[Shown]:
    """Return rows as a page, each shown by `show`."""
    return with_next(page(rows, more, show))


def with_next(shown: Page[Shown]) -> AdminPage[Shown]:
    """Return a page with the cursor of the next one."""
    return AdminPage(**dict(shown), next=shown.last_id if shown.has_more else None)


def query_values(name: str, description: str) -> Any:
    """Return the dependency that reads a list of a query: `name[]=a&name[]=b`, as the SDK sends it, or `name=a,b`."""

    def values(
        request: Request,
        bracketed: Annotated[  # noqa: ARG001 (for the document of the API)
            list[str] | None, Query(alias=f"{name}[]", max_length=MAX_VALUES, description=description)
        ] = None,
    ) -> list[str]:
        return read_values(request, name)

    return Depends(values)


def read_values(request: Request, name: str) -> list[str]:
    """Return the values of a list of a query, in all its forms. Raises: InvalidRequest, if there are too many."""
    given = request.query_params
    values = [part for text in given.getlist(name) for part in text.split(",")] + given.getlist(f"{name}[]")
    if len(values) > MAX_VALUES:
        message = f"Invalid '{name}': at most {MAX_VALUES} values can be given."
        raise InvalidRequest(message, param=name, code="invalid_value")
    return list(dict.fromkeys(values))
