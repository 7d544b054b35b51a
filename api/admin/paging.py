"""Pages of the lists of the admin API, which the SDK follows in three ways: by the last item, `last_id`, or `next`."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from api.http.paging import Page, page

Row = TypeVar("Row")
Shown = TypeVar("Shown")


class AdminPage(Page[Shown]):
    """One page of a list. `next` is the cursor of the next page; null on the last one."""

    next: str | None


def admin_page(rows: Sequence[Row], more: bool, show: Callable[[Row], Shown]) -> AdminPage[Shown]:
    """Return rows as a page, each shown by `show`."""
    shown = page(rows, more, show)
    return AdminPage(**dict(shown), next=shown.last_id if more else None)
